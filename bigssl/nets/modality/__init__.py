"""What is different for pictures, text, series and sound? One row each in table.py; nothing else asks which it is."""

from bigssl.nets.modality.table import MODALITIES as MODALITIES
from bigssl.nets.modality.table import Modality as Modality
from bigssl.nets.modality.table import modality_of_type as modality_of_type
