"""Queues of the latest vectors of each class, equal on all processes."""

import torch
from mmengine.dist import all_gather
from torch import Tensor, nn


class ClassQueues(nn.Module):
    """For each class the latest vectors, oldest overwritten first.

    Args:
        num_classes: K.
        length: Vectors that a queue holds.
        channels: C.
    """

    vectors: Tensor
    written: Tensor

    def __init__(self, num_classes: int, length: int, channels: int) -> None:
        super().__init__()
        self.register_buffer('vectors', torch.zeros(num_classes, length, channels))
        self.register_buffer('written', torch.zeros(num_classes, dtype=torch.int64))

    def put(self, vectors: Tensor, valid: Tensor) -> None:
        """Add vectors (N, K, M, C), where ``valid`` (N, K, M) is True, of all processes."""
        vectors, valid = (torch.cat(all_gather(x.contiguous())) for x in (vectors, valid.int()))
        length = self.vectors.shape[1]
        for k in valid.sum((0, 2)).nonzero().flatten().tolist():
            new = vectors[:, k][valid[:, k].bool()][-length:]
            places = (self.written[k] + torch.arange(len(new), device=new.device)) % length
            self.vectors[k, places] = new.to(self.vectors.dtype)
            self.written[k] += len(new)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``count`` vectors per class, (K·count, C), with repetition, and which of them there are."""
        classes, length = self.vectors.shape[:2]
        filled = self.written.clamp(max=length)[:, None]
        random = torch.rand(classes, count, generator=generator).to(self.vectors.device)
        places = (random * filled).long().clamp(max=length - 1)
        drawn = self.vectors.gather(1, places[..., None].expand(-1, -1, self.vectors.shape[2]))
        return drawn.flatten(0, 1), (filled > 0).expand(-1, count).flatten()
