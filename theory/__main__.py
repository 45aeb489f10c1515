"""Check every proof and print the catalogue, a line a claim."""

import argparse

from theory.catalogue import prove


def main() -> None:
    """Print name, conditions, statement, verdict and milliseconds of every claim."""
    argparse.ArgumentParser(prog="python -m theory", description=__doc__).parse_args()
    for claim, seconds in prove():
        conditions = ", ".join(condition.text for condition in claim.conditions) or "–"
        print(f"{claim.name:21} {conditions:19} {claim.text:86} proved {1e3 * seconds:5.0f} ms")


if __name__ == "__main__":
    main()
