from . import (
    analysis as analysis,
    gates as gates,
    huggingface as huggingface,
    integrations as integrations,
    layers as layers,
    plotting as plotting,
    problems as problems,
    serving as serving,
    solvers as solvers,
    training as training,
)
from .api import lower_bound as lower_bound, solve as solve
from .compilation import warm_up as warm_up
from .gates import *
from .huggingface import *
from .installation import show_versions as show_versions
from .layers import *
from .problems import *
from .solvers import *
from .training import *

__version__: str
