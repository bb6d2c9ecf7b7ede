import math

import torch
from torch.nn import functional as F

from ssl_core.models.heads import ClassifierHead, ProjectionHead


def test_classifier_head_starts_with_equal_chances_whatever_the_seed():
    torch.manual_seed(3)
    head = ClassifierHead(16, 7)
    loss = F.cross_entropy(head(torch.randn(5, 16)), torch.tensor([0, 1, 2, 3, 6]))
    assert math.isclose(loss.item(), math.log(7), rel_tol=1e-6)


def test_classifier_head_learns_from_its_zero_start():
    torch.manual_seed(0)
    x, y = torch.randn(64, 4), torch.arange(64) % 2
    x[:, 0] += 6.0 * y
    head = ClassifierHead(4, 2)
    optimizer = torch.optim.Adam(head.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(head(x), y).backward()
        optimizer.step()
    assert (head(x).argmax(1) == y).float().mean() > 0.95


def test_projection_head_is_the_papers_mlp():
    torch.manual_seed(0)
    head = ProjectionHead(6, 10, 4)
    h = torch.randn(8, 6)
    hidden = h @ head[0].weight.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(h), torch.relu(hidden) @ head[3].weight.T)


def test_projection_head_with_group_norm_judges_each_sample_alone():
    torch.manual_seed(0)
    head = ProjectionHead(6, 10, 4, norm="group").train()
    h = torch.randn(8, 6)
    torch.testing.assert_close(head(h)[:1], head(h[:1]))
