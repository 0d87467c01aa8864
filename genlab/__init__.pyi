from genlab.api import compare as compare
from genlab.api import fit as fit
from genlab.api import load as load
from genlab.api import open_run as open_run
from genlab.api import sample as sample
from genlab.api import score as score
from genlab.api import test as test

__version__: str

__all__ = ["__version__", "compare", "fit", "load", "open_run", "sample", "score", "test"]
