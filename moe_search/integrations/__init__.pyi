from .lightning import LightningSearch as LightningSearch
from .transformers import TransformersSearch as TransformersSearch
