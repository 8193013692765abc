"""Everything that a notebook or a script needs: `from oamip_nb.all import *`.

Kept by hand, like fastai's own `all` modules. The names of this package come last: where fastai has the same one, ours is meant.
"""
from fastai.basics import *
from fastai.callback.progress import *
from fastai.callback.schedule import *
from .data import *
from .models import *
from .network import *
from .graphs import *
from .bounds import *
from .formulation import *
from .solvers import *
from .importance import *
from .mip import *
from .descent import *
from .dgl import *
from .jobs import *
from .pruning import *
from .parts import *
from .callbacks import *
from .baselines import *
from .repair import *
from .experiments import *
from .mint import *
from .plots import *
from .export import *
from .biprop import *
from .ticket_models import *
from .tickets import *
from .find_ticket import *
