"""The frozen tower: equal to open_clip's, whatever comes along, and never quietly worse."""

import pytest
import torch
from torch.nn import functional as F

from bieff import clip as clips
from bieff.clip import TINYCLIP, ClipName
from bieff.extract import tower as tower_module
from bieff.extract.tower import CropStream, ViewMeans, VisualTower, normalise
from bieff.features.errors import InputError
from bieff.train.method.model import PatchContext

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip():
    return clips.load(ClipName(model=TINYCLIP, pretrained=None))


def some_crops(clip, count, *, seed=0):
    size = clip.preprocessing.size
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    return (255 * F.interpolate(coarse, size=(size, size), mode="bilinear")).byte()


def pixels_of(clip, crops):
    return normalise(crops, mean=clip.preprocessing.mean, std=clip.preprocessing.std)


def per_token_path(clip, crops):
    """Tokens of the last block after the final norm, normalised one by one in float64."""
    visual = clip.model.visual
    seen = []
    handle = visual.transformer.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        visual(pixels_of(clip, crops))
    handle.remove()
    with torch.no_grad():
        tokens = visual.ln_post(seen[0][:, 1:]).double()  # without the class token
    mean = tokens.mean(dim=-1, keepdim=True)
    variance = ((tokens - mean) ** 2).mean(dim=-1, keepdim=True)
    return (tokens - mean) / (variance + 1e-5).sqrt()


def test_it_gives_what_open_clip_gives(clip):
    crops = some_crops(clip, 13)
    tower = VisualTower(clip, device=CPU, batch_size=5)
    with torch.no_grad():
        want = clip.model.encode_image(pixels_of(clip, crops))
    torch.testing.assert_close(tower.encode(crops).embeddings, want)
    assert tower.encode(crops).patches is None
    assert tower.precision == "float32"


@pytest.mark.parametrize("count", [1, 6, 7, 8, 20])
def test_a_crop_does_not_depend_on_its_company(clip, count):
    """The last batch is padded to the same size, so the very same kernels run."""
    crops = some_crops(clip, 23)
    tower = VisualTower(clip, device=CPU, batch_size=7)
    few, all_of_them = tower.encode(crops[:count]), tower.encode(crops)
    assert torch.equal(few.embeddings, all_of_them.embeddings[:count])
    other = torch.cat([crops[:count], some_crops(clip, 3, seed=1)])
    assert torch.equal(tower.encode(other).embeddings[:count], few.embeddings)


def test_reduced_precision_is_taken_if_it_agrees(clip):
    crops = some_crops(clip, 11)
    exact = VisualTower(clip, device=CPU, batch_size=11)
    fast = VisualTower(clip, device=CPU, batch_size=11, reduced=True)
    assert fast.precision.startswith("bfloat16 (cosine 0.99")
    a, b = exact.encode(crops).embeddings, fast.encode(crops).embeddings
    assert not torch.equal(a, b)
    assert b.dtype == torch.float32
    assert F.cosine_similarity(a, b).min() > 0.999


def test_reduced_precision_is_refused_if_it_does_not(clip, monkeypatch):
    crops = some_crops(clip, 11)
    exact = VisualTower(clip, device=CPU, batch_size=11)
    monkeypatch.setattr(tower_module, "MIN_COSINE", 0.9999999)
    refused = VisualTower(clip, device=CPU, batch_size=11, reduced=True)
    assert refused.precision.startswith("float32 (bfloat16 refused: cosine 0.99")
    assert torch.equal(refused.encode(crops).embeddings, exact.encode(crops).embeddings)


def test_not_a_number_is_no_likeness(clip):
    tower = VisualTower(clip, device=CPU, batch_size=3)

    def broken(crops):
        return torch.full((3, clip.dim), torch.nan), None

    assert tower.likeness(broken, some_crops(clip, 2)) == -1.0
    assert tower.likeness(tower.forward_float32, some_crops(clip, 2)) > 0.99999


def test_where_the_fast_way_fails_there_is_a_slower_one(clip, monkeypatch):
    """A machine without a compiler: the first call of a compiled function says so."""
    calls = []

    def likeness(self, forward, crops):
        calls.append(forward)
        if len(calls) == 1:
            raise RuntimeError("no C compiler\nand a long story")
        return 0.9999

    monkeypatch.setattr(VisualTower, "likeness", likeness)
    tower = VisualTower(clip, device=CPU, batch_size=3, reduced=True)
    assert tower.precision == (
        "bfloat16, not compiled (no C compiler) (cosine 0.99990 to float32)"
    )


def test_patch_tokens_are_normalised_without_an_affine_map(clip):
    crops = some_crops(clip, 7)
    tower = VisualTower(clip, device=CPU, batch_size=3, wants_patches=True)
    encoded = tower.encode(crops)
    want = per_token_path(clip, crops)
    torch.testing.assert_close(encoded.patches, want.float(), rtol=1e-4, atol=1e-5)
    plain = VisualTower(clip, device=CPU, batch_size=3).encode(crops)
    torch.testing.assert_close(encoded.embeddings, plain.embeddings)


def test_the_mean_over_time_is_exact(clip):
    """What is stored is the mean of what the norms make of every token."""
    check_mean_over_time(clip, VisualTower(clip, device=CPU, batch_size=5, wants_patches=True))


@pytest.mark.slow
def test_the_mean_over_time_is_exact_for_vit_b_16():
    name = ClipName(model="ViT-B-16-quickgelu", pretrained="random:3")
    clip = clips.load(name)
    check_mean_over_time(clip, VisualTower(clip, device=CPU, batch_size=5, wants_patches=True))


def check_mean_over_time(clip, tower):
    views, frames = 3, 4
    crops = some_crops(clip, views * frames)
    means = ViewMeans(frames)
    for part in crops.split(tower.batch_size):  # batches that cut across views
        means.add(tower.encode(part).patches)
    cached = torch.stack(means.finished)
    assert cached.dtype == torch.float16
    # float16 keeps 11 bits of each of the tokens' numbers, which are about 1
    exact = per_token_path(clip, crops).unflatten(0, (views, frames)).mean(dim=1)
    torch.testing.assert_close(cached.double(), exact, rtol=2**-10, atol=1e-4)


def test_patches_are_those_of_the_release(clip):
    """CLIP's final norm, a learned LayerNorm, a projection, the mean over time."""
    views, frames = 2, 4
    crops, visual = some_crops(clip, views * frames), clip.model.visual
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(visual.transformer.width)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    ours = PatchContext(visual.transformer.width, clip.dim)
    ours.scale, ours.offset = norm.weight, norm.bias
    seen = []
    handle = visual.transformer.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        visual(pixels_of(clip, crops))
        handle.remove()

        def release(tokens):
            context = ours.projection(norm(tokens))[:, 1:]
            return context.unflatten(0, (views, frames)).mean(dim=1)

        want = release(visual.ln_post(seen[0]))
        tower = VisualTower(clip, device=CPU, batch_size=8, wants_patches=True)
        stored = tower.encode(crops).patches.unflatten(0, (views, frames)).mean(dim=1)
        got = ours(stored)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    # without CLIP's own norm, as stores had it before, it is another context
    assert (release(seen[0]) - want).norm() > 0.02 * want.norm()


@pytest.mark.parametrize("cuts", [(1,) * 12, (12,), (5, 7), (2, 9, 1), (4, 4, 4)])
def test_views_are_averaged_however_batches_cut_them(cuts):
    tokens = torch.rand(12, 3, 5, generator=torch.Generator().manual_seed(0))
    means = ViewMeans(4)
    for part in tokens.split(cuts):
        means.add(part)
    want = tokens.unflatten(0, (3, 4)).mean(dim=1).half()
    torch.testing.assert_close(torch.stack(means.finished), want)


def test_a_tower_without_patch_tokens_says_so(clip):
    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = torch.nn.Linear(2, 2)

    other = type(clip)(clip.name, Other(), clip.preprocessing, "", 2, clip._tokenizer)
    with pytest.raises(
        InputError, match="no patch tokens; choose a vision transformer without"
    ):
        VisualTower(other, device=CPU, batch_size=2, wants_patches=True)


@pytest.mark.gpu
def test_on_a_gpu_it_is_compiled_and_agrees(clip):
    device = torch.device("cuda")
    crops = some_crops(clip, 37)
    exact = VisualTower(clip, device=CPU, batch_size=37).encode(crops).embeddings
    try:
        tower = VisualTower(clip, device=device, batch_size=16)
        assert tower.precision.startswith("bfloat16, compiled")
        got = tower.encode(crops.to(device)).embeddings.cpu()
        assert torch.equal(got[:5], tower.encode(crops[:5]).embeddings.cpu())
    finally:
        clip.model.to(CPU)
    assert F.cosine_similarity(exact, got).min() > 0.999


@pytest.mark.gpu
def test_on_a_gpu_frames_arrive_whole_while_it_works(clip):
    device = torch.device("cuda")
    generator = torch.Generator().manual_seed(0)
    frames = [
        torch.randint(0, 256, (31, 256, 340, 3), generator=generator).byte() for _ in range(23)
    ]
    try:
        tower = VisualTower(clip, device=device, batch_size=64)
        stream = CropStream(tower, 1)
        size = clip.preprocessing.size
        sums = []
        for i, one in enumerate(frames):
            there = tower.upload(one)
            sums.append(there.long().sum())
            stream.add(i, there[:, :size, :size].permute(0, 3, 1, 2).contiguous())
        stream.close()
    finally:
        clip.model.to(CPU)
    assert [int(total) for total in sums] == [int(one.long().sum()) for one in frames]
