from .lightning import (
    LightningSearch as LightningSearch,
    LightningSpecialization as LightningSpecialization,
)
from .transformers import (
    TransformersSearch as TransformersSearch,
    TransformersSpecialization as TransformersSpecialization,
)
