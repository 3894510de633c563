"""TS2Vec's encoder (Yue et al. 2022, https://arxiv.org/abs/2106.10466, section 3.2): a linear layer on the values of a
step, then residual blocks of two dilated convolutions over time, the last of which widens to the size of the states.

    past_values [B, T, C] ── instance normalisation ── linear ── 0 where nothing was observed ── blocks of dilation
                                                                                       1, 2, 4 ... ── states [B, T, D]

This file knows nothing but transformers: a copy lies beside exported weights, so that
`AutoModel.from_pretrained(DIR, trust_remote_code=True)` loads them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class Ts2vecConfig(PreTrainedConfig):
    """Attributes:
    context_length: steps of a series as it is pretrained and evaluated; the network takes any number.
    num_input_channels: values of a step.
    hidden_size: size of a step's state. width: of the blocks before. depth: blocks before the last.
    kernel_size: steps of a convolution, odd. dropout: on the states.
    scaling: "std", each channel of a series less its mean, over its deviation (of what is observed), or None, for
        series that are normalised already.
    """

    model_type = "ts2vec"
    patch_length = patch_stride = 1  # a state is of one step

    def __init__(
        self, context_length: int = 96, num_input_channels: int = 1, hidden_size: int = 320, width: int = 64,
        depth: int = 10, kernel_size: int = 3, dropout: float = 0.1, scaling: str | None = "std", **kwargs: object,
    ) -> None:  # fmt: skip
        self.context_length, self.num_input_channels = context_length, num_input_channels
        self.hidden_size, self.width, self.depth = hidden_size, width, depth
        self.kernel_size, self.dropout, self.scaling = kernel_size, dropout, scaling
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size}; allowed: an odd number, so that a state stands at its step")
        if scaling not in ("std", None):
            raise ValueError(f"scaling {scaling!r}; allowed: std, or null")
        super().__init__(**kwargs)  # type: ignore[arg-type]


class TimeConv(nn.Conv1d):
    """[B, before, 1, T] -> [B, after, 1, T], a convolution over time as one over pictures of one row: CPUs are faster
    at that, as channels are last in memory."""

    def forward(self, input: Tensor) -> Tensor:
        padding, dilation = (0, int(self.padding[0])), (1, self.dilation[0])
        return F.conv2d(input, self.weight[:, :, None], self.bias, padding=padding, dilation=dilation)


class Ts2vecBlock(nn.Module):
    """[B, before, 1, T] -> [B, after, 1, T]."""

    def __init__(self, before: int, after: int, kernel: int, dilation: int, last: bool) -> None:
        super().__init__()
        self.first, self.second = (
            TimeConv(size, after, kernel, padding=(kernel - 1) * dilation // 2, dilation=dilation)
            for size in (before, after)
        )
        self.shortcut = TimeConv(before, after, 1) if last or before != after else None

    def forward(self, states: Tensor) -> Tensor:
        beside = states if self.shortcut is None else self.shortcut(states)
        made: Tensor = self.second(F.gelu(self.first(F.gelu(states))))
        return made + beside


class Ts2vecModel(PreTrainedModel):
    """States [B, T, hidden_size] of series, of all channels together."""

    config_class = Ts2vecConfig
    base_model_prefix = "ts2vec"
    main_input_name = "past_values"

    def __init__(self, config: Ts2vecConfig) -> None:
        super().__init__(config)
        self.embedder = nn.Linear(config.num_input_channels, config.width)
        sizes = [config.width] * (config.depth + 1) + [config.hidden_size]
        self.blocks = nn.ModuleList(
            Ts2vecBlock(sizes[n], sizes[n + 1], config.kernel_size, 2**n, n == config.depth)
            for n in range(config.depth + 1)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As torch makes them, which is how the paper's are."""
        if isinstance(module, nn.Linear | nn.Conv1d):
            module.reset_parameters()

    def forward(self, past_values: Tensor, past_observed_mask: Tensor | None = None) -> BaseModelOutput:
        """past_values: [B, T, C]. past_observed_mask: the same shape, 0 where a value is missing: a step of which all
        are is hidden, one of which some are is seen with their channels' means (`scaling: std`) or 0 there."""
        observed = torch.ones_like(past_values) if past_observed_mask is None else past_observed_mask.to(past_values)
        values = past_values * observed
        if self.config.scaling == "std":
            count = observed.sum(1, keepdim=True).clamp(min=1)
            values = (past_values - values.sum(1, keepdim=True) / count) * observed
            values = values / (values.square().sum(1, keepdim=True) / count + 1e-5).sqrt()
        states = self.embedder(values) * observed.amax(2, keepdim=True)
        states = states.transpose(1, 2)[:, :, None]
        for block in self.blocks:
            states = block(states)
        return BaseModelOutput(last_hidden_state=self.dropout(states[:, :, 0].transpose(1, 2)))
