"""A plain eager GAM, the paper's block as one would first write it, to compare ours with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.config import ModelConfig


class PlainGAMBlock(nn.Module):
    """Channels-first Conv1d, softmax memory, gates, feed-forward; nothing fused or recomputed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, k = config.d_model, config.gam.kernel_size
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.conv = nn.Conv1d(d, d, k, padding=k - 1, groups=d)
        self.bank = nn.Parameter(nn.init.xavier_uniform_(torch.empty(config.gam.n_slots, d)))
        self.gate = nn.Linear(d, 2 * d)
        hidden = config.ffn_mult * d
        self.ffn = nn.Sequential(
            nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d), nn.Dropout(config.dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        local = self.conv(h.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        read = F.softmax(h @ self.bank.T, dim=-1) @ self.bank
        local_gate, read_gate = self.gate(h).chunk(2, dim=-1)
        x = x + torch.sigmoid(local_gate) * local + torch.sigmoid(read_gate) * read
        return x + self.ffn(self.norm2(x))


class PlainGAM(nn.Module):
    """The whole model, with all logits materialised and torch's cross-entropy."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position = nn.Embedding(config.max_seq_len, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(PlainGAMBlock(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        where = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.embedding(tokens) + self.position(where))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
