"""Contrastive and masked-token losses that never hold their logits.

Needs torch only to import. The fused kernels run on a GPU with triton installed; everywhere else the same functions run
chunked in plain torch, with the same results.
"""

from bigssl_kernels.contrastive.api import clip_loss, info_nce, nt_xent, sigmoid_loss, sup_con
from bigssl_kernels.explain import explain
from bigssl_kernels.linear_ce.api import TokenStatistics, linear_cross_entropy, sharded_linear_cross_entropy

__all__ = [
    "TokenStatistics",
    "clip_loss",
    "explain",
    "info_nce",
    "linear_cross_entropy",
    "nt_xent",
    "sharded_linear_cross_entropy",
    "sigmoid_loss",
    "sup_con",
]
