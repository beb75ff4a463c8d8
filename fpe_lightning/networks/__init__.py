"""Dense, wide-sparse and expanded networks: plain ``nn.Module`` classes."""

from fpe_lightning.networks.cnn import SmallCNN as SmallCNN
from fpe_lightning.networks.expanded import Expanded as Expanded
from fpe_lightning.networks.folder import SavedInFolder as SavedInFolder
from fpe_lightning.networks.mlp import MLP as MLP
from fpe_lightning.networks.mlp import WideSparseMLP as WideSparseMLP
from fpe_lightning.networks.vit import SmallViT as SmallViT
