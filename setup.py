"""What pyproject.toml cannot say: a wheel carries the folder experiments/, as genlab/experiments/."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithExperiments(build_py):
    """Copies the experiments and their table; an editable installation finds them beside the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "genlab", "experiments")
            self.mkpath(str(target))
            for file in experiments():
                self.copy_file(file, str(target / Path(file).name))

    def get_source_files(self) -> list[str]:
        """Returns what goes into a source distribution."""
        return [*super().get_source_files(), *experiments()]


def experiments() -> list[str]:
    """Returns the files of the folder itself: a wheel goes without the records in results/."""
    return [str(path) for path in sorted(Path("experiments").glob("*.*")) if path.is_file()]


setup(cmdclass={"build_py": WithExperiments})
