import math

import torch
import torch.nn.functional as F

from bieff.train.method.loss import cosine, positive_pairs, symmetric_loss, unit

B, D = 5, 7
TAU = 0.1


def make(num_categories, seed=0):
    draw = torch.Generator().manual_seed(seed)
    video = torch.randn(B, D, generator=draw)
    classes = torch.randn(B, num_categories, D, generator=draw)  # each video has its own
    return cosine(video[:, None], classes)[:, 0] / TAU


def reference_loss(logits, labels, categories):
    """Eq. 10 with uniform targets over positives, in Python floats."""

    def row_loss(row, is_positive):
        total = sum(math.exp(x) for x in row)
        positives = [x for x, yes in zip(row, is_positive, strict=True) if yes]
        return -sum(math.log(math.exp(x) / total) for x in positives) / len(positives)

    rows = [
        row_loss(r, [y == c for c in categories]) for r, y in zip(logits, labels, strict=True)
    ]
    columns = [
        row_loss(column, [y == c for y in labels])
        for column, c in zip(zip(*logits, strict=True), categories, strict=True)
    ]
    return 0.5 * (sum(rows) / len(rows) + sum(columns) / len(columns))


def test_by_hand():
    """Two pairs; logits log 3 on the diagonal and 0 off it: each softmax gives 3/4."""
    logits = torch.eye(2) * math.log(3)
    got = symmetric_loss(logits, torch.eye(2, dtype=torch.bool))
    torch.testing.assert_close(got, torch.tensor(math.log(4 / 3)))


def test_a_repeated_label_by_hand():
    """Three videos of labels 0, 0, 1, all logits 0: log 2 by rows, log 3 by columns."""
    positives = positive_pairs(torch.tensor([0, 0, 1]), torch.tensor([0, 1]))
    assert positives.tolist() == [[True, False], [True, False], [False, True]]
    got = symmetric_loss(torch.zeros(3, 2), positives)
    torch.testing.assert_close(got, torch.tensor((math.log(2) + math.log(3)) / 2))


def test_it_matches_the_reference():
    for labels in ([2, 0, 3, 1, 4], [7, 2, 7, 7, 2], [1, 1, 1, 1, 1]):
        categories = sorted(set(labels))
        logits = make(len(categories))
        positives = positive_pairs(torch.tensor(labels), torch.tensor(categories))
        want = reference_loss(logits.tolist(), labels, categories)
        torch.testing.assert_close(symmetric_loss(logits, positives), torch.tensor(want))


def test_with_distinct_labels_it_is_clips_loss_whatever_the_targets():
    logits = make(B)
    order = torch.tensor([2, 0, 3, 1, 4])
    positives = positive_pairs(order, torch.arange(B))
    want = (F.cross_entropy(logits, order) + F.cross_entropy(logits.T, order.argsort())) / 2
    torch.testing.assert_close(symmetric_loss(logits, positives), want)
    torch.testing.assert_close(symmetric_loss(logits, positives, targets="multi-hot"), want)


def test_multi_hot_targets_are_a_column_a_video_and_not_normalised():
    labels = torch.tensor([7, 2, 7, 7, 2])
    logits = make(2)
    per_video = logits[:, (labels == 7).long()]  # the categories are 2, 7
    target = (labels[:, None] == labels).float()
    want = (F.cross_entropy(per_video, target) + F.cross_entropy(per_video.T, target)) / 2
    positives = positive_pairs(labels, torch.tensor([2, 7]))
    got = symmetric_loss(logits, positives, targets="multi-hot")
    torch.testing.assert_close(got, want)
    assert (got - symmetric_loss(logits, positives)).abs() > 0.1


def test_the_order_of_videos_and_categories_does_not_matter():
    labels, categories = torch.tensor([7, 2, 7, 5, 2]), torch.tensor([2, 5, 7])
    logits = make(3)
    want = symmetric_loss(logits, positive_pairs(labels, categories))
    rows, columns = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([2, 0, 1])
    got = symmetric_loss(
        logits[rows][:, columns], positive_pairs(labels[rows], categories[columns])
    )
    torch.testing.assert_close(got, want)


def test_it_pulls_pairs_together_and_others_apart():
    labels, categories = torch.tensor([7, 2, 7, 5, 2]), torch.tensor([2, 5, 7])
    logits = torch.zeros(B, 3, requires_grad=True)
    positives = positive_pairs(labels, categories)
    symmetric_loss(logits, positives).backward()
    assert (logits.grad[positives] < 0).all()
    assert (logits.grad[~positives] > 0).all()


def test_unit_vectors_and_their_gradient():
    x = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(unit(x), F.normalize(x, dim=-1))
    assert torch.autograd.gradcheck(unit, x.requires_grad_())
    assert not unit(torch.zeros(2, D)).any()


def test_cosine_by_hand():
    left = torch.tensor([[[3.0, 4.0]]])
    right = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-6.0, -8.0]]])
    torch.testing.assert_close(cosine(left, right), torch.tensor([[[0.6, 0.8, -1.0]]]))


def test_cosine_is_float32_under_autocast():
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 3, B, D, generator=draw)
    want = cosine(left, right)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cosine(left, right), want)
        assert cosine(left.bfloat16(), right).dtype == torch.float32
    assert cosine(left.double(), right).dtype == torch.float64
