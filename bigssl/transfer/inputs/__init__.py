"""What does an exported backbone take? A class per modality: the fixed view that evaluation has of a sample, the
baselines that have learnt nothing, and the files that tell transformers and `bigssl evaluate` of both.

What is written beside the weights is the view: read again, by us or by transformers, it makes of a sample the same.
"""

from bigssl.transfer.arriving.sizes import CONFIG as CONFIG
from bigssl.transfer.inputs.base import Input as Input
from bigssl.transfer.inputs.pictures import ImageInput as ImageInput
from bigssl.transfer.inputs.table import INPUTS as INPUTS
from bigssl.transfer.inputs.table import AudioInput as AudioInput
from bigssl.transfer.inputs.table import SeriesInput as SeriesInput
from bigssl.transfer.inputs.table import TextInput as TextInput
from bigssl.transfer.inputs.table import exported_input as exported_input
from bigssl.transfer.inputs.table import input_of as input_of
