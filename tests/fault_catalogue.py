"""The catalogue of faults, docs/faults.md: its rows, the tests that plant them, what `make faults` prints.

Run as a program, it writes the names of the tests into the table.
"""

import ast
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = TESTS.parent / "docs" / "faults.md"
ROW = re.compile(
    r"^\| (?P<number>\d+) \| (?P<fault>[^|]+) \| (?P<promise>[^|]+) \|(?P<tests>[^|]*)\|$", re.MULTILINE
)


@dataclass(frozen=True)
class Row:
    number: int
    fault: str
    promise: str
    tests: tuple[str, ...]


def rows():
    """The rows of the table, by number."""
    found = [match.groupdict() for match in ROW.finditer(TABLE.read_text(encoding="utf-8"))]
    return {
        int(row["number"]): Row(
            int(row["number"]),
            row["fault"],
            row["promise"],
            tuple(filter(None, row["tests"].strip().split("; "))),
        )
        for row in found
    }


def marked_tests():
    """The names of the tests of each row, as the table writes them: `file: sentence`."""
    found = defaultdict(list)
    for path in sorted(TESTS.glob("*_*.py")):
        for function in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(function, ast.FunctionDef):
                name = f"{path.stem}: {function.name.removeprefix('test_').replace('_', ' ')}"
                for number in numbers_of(function):
                    found[number].append(name)
    return {number: tuple(names) for number, names in found.items()}


def numbers_of(function):
    """The rows that the decorators of a test name."""
    calls = [each for each in function.decorator_list if isinstance(each, ast.Call)]
    marks = [call for call in calls if ast.unparse(call.func) == "pytest.mark.fault"]
    return [argument.value for mark in marks for argument in mark.args]


def written():
    """The table's file with the names of the tests as they are now."""
    tests = marked_tests()

    def line(match):
        names = "; ".join(tests.get(int(match["number"]), ()))
        return f"| {match['number']} | {match['fault']} | {match['promise']} | {names} |"

    return ROW.sub(line, TABLE.read_text(encoding="utf-8"))


class FaultReport:
    """Chooses the tests of some rows, and prints a line a row: pytest's plugin of `--faults`.

    A row passes where one of its tests has and none has failed; the others end the session with 1.

    Args:
        chosen: The rows, "all" or numbers such as "6,7".
    """

    def __init__(self, chosen):
        self.rows = rows()
        if chosen != "all":
            self.rows = {int(number): self.rows[int(number)] for number in chosen.split(",")}
        self.outcomes, self.tables = defaultdict(list), defaultdict(list)

    def pytest_collection_modifyitems(self, config, items):
        kept = []
        for item in items:
            numbers = {n for mark in item.iter_markers("fault") for n in mark.args} & self.rows.keys()
            item.user_properties += [("fault", number) for number in numbers]
            if numbers:
                kept.append(item)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            for name, number in report.user_properties:
                if name == "fault":
                    self.outcomes[number].append(report.outcome)
        if report.when == "call":
            for name, value in report.user_properties:
                if name == "table":  # what a test measured: a title, a row and its value
                    self.tables[value[0]].append(value[1:])

    def has_passed(self, number):
        return "passed" in self.outcomes[number] and "failed" not in self.outcomes[number]

    def pytest_sessionfinish(self, session):
        if not all(map(self.has_passed, self.rows)) and not session.exitstatus:
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter):
        for title, values in self.tables.items():
            terminalreporter.write_line(f"\n{title}")
            for name, value in values:
                terminalreporter.write_line(f"  {name:<72} {value}")
        for number, row in self.rows.items():
            outcomes = self.outcomes[number]
            word = "PASS" if self.has_passed(number) else "FAIL"
            terminalreporter.write_line(f"{number:3d} {word}  {row.fault} ({counted(outcomes)})")
        passed = sum(map(self.has_passed, self.rows))
        terminalreporter.write_line(f"{passed}/{len(self.rows)}")


def counted(outcomes):
    """How many tests of a row passed, and how many did not: `3 passed, 1 skipped`."""
    kinds = ("passed", "failed", "skipped")
    return ", ".join(f"{outcomes.count(kind)} {kind}" for kind in kinds if kind in outcomes) or "no test"


if __name__ == "__main__":
    TABLE.write_text(written(), encoding="utf-8")
