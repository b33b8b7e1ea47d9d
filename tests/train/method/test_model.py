import dataclasses

import pytest
import torch
import torch.nn.functional as F
from helpers.training import DESIGNS

from bieff import clip as clips
from bieff.clip import TINYCLIP, Clip, ClipName, Preprocessing, import_open_clip
from bieff.features.errors import ConfigError
from bieff.train.config import TrainConfig, load, preset
from bieff.train.method.loss import positive_pairs, symmetric_loss
from bieff.train.method.model import BiEfficient
from bieff.train.method.pre_prompt import embedded_words
from bieff.train.method.word_guided import pick
from bieff.train.runs.run import build_model
from bieff.train.text.tower import TextTower

B, T, P, D, W = 5, 3, 7, 13, 11
PATCH_WIDTH = 17
NAMES = ["playing guitar", "archery", "playing squash or racquetball", "tai chi"]


@pytest.fixture(scope="module")
def clip():
    """A CLIP of open_clip's own making, tiny, with the standard tokenizer."""
    open_clip = import_open_clip()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(
            embed_dim=D,
            vision_cfg={
                "image_size": 8,
                "patch_size": 8,
                "width": 8,
                "layers": 1,
                "head_width": 8,
            },
            text_cfg={"width": W, "heads": 1, "layers": 3},
        )
        # at open_clip's start the three blocks hardly change their input
        for name, parameter in model.transformer.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.5)
        torch.nn.init.normal_(model.positional_embedding, std=0.2)
        torch.nn.init.normal_(model.token_embedding.weight, std=0.2)
    model.eval().requires_grad_(False)
    return Clip(
        name=ClipName(model="tiny", pretrained=None),
        model=model,
        preprocessing=Preprocessing(size=8, mean=(0, 0, 0), std=(1, 1, 1)),
        fingerprint="",
        dim=D,
        _tokenizer=open_clip.get_tokenizer("ViT-B-32"),
    )


@pytest.fixture(scope="module")
def text(clip):
    return TextTower(clip.model, clip.tokenize(NAMES))


@pytest.fixture(scope="module")
def build(clip):
    def build(config, *, shaken=True):
        model = BiEfficient(
            config,
            dim=D,
            text_width=W,
            num_frames=T,
            patches=(P, PATCH_WIDTH),
            words=embedded_words(config, clip),
        )
        if shaken:  # zeros at the start would hide mistakes
            draw = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if not name.endswith(("alpha", "beta", "log_scale")):
                        parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
        return model

    return build


def make(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(B, T, D, generator=draw),
        torch.randn(B, P, PATCH_WIDTH, generator=draw),
    )


def naive_text(clip, prompts):
    """open_clip's text tower on whole prompts (b, rows, W): all rows, projected."""
    model = clip.model
    x = prompts + model.positional_embedding[: prompts.shape[1]]
    x = model.transformer(x, attn_mask=model.attn_mask[: x.shape[1], : x.shape[1]])
    return model.ln_final(x) @ model.text_projection


@pytest.mark.parametrize("see", ["frames", "temporal", "patches"])
def test_the_pieces_are_wired_as_the_method_says(clip, text, build, see):
    """One video and one category at a time, through open_clip's own tower."""
    model = build(load(overrides=[f"prompts_see={see}"]))
    frames, patches = make()
    got = model(frames, text, patches=patches)
    temporal = model.temporal(frames)
    visual = {"frames": frames, "temporal": temporal}.get(see)
    if see == "patches":
        projector = model.patch_context
        visual = (patches * projector.scale + projector.offset) @ projector.projection.weight.T
    tokens = clip.tokenize(NAMES)
    for b in range(B):
        v, mean = visual[b : b + 1], temporal[b].mean(0)
        c_v = model.prompt(v).video[0]  # (1, W)
        classes, words = [], []
        for row in tokens:
            name = clip.model.token_embedding(row[: int(row.argmax()) + 1])
            prompt = torch.cat([name[:1], model.prompt.context, c_v, name[1:]])
            rows = naive_text(clip, prompt[None])[0]
            classes.append(model.post_prompt(rows[None, -1:], v)[0, 0])
            words.append(rows[-len(name) + 1 : -1])
        likeness = torch.stack([F.cosine_similarity(mean, c, dim=0) for c in classes])
        picked = int(likeness.argmax())
        assert got.picked[b] == picked
        frame_word = F.cosine_similarity(temporal[b][:, None], words[picked][None], dim=-1)
        weights = frame_word.softmax(0).mean(1)  # (T,)
        video = mean + model.word_guided.beta * weights @ temporal[b]
        cosine = torch.stack([F.cosine_similarity(video, c, dim=0) for c in classes])
        # two ways through three layers of the text tower, in float32
        near = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(got.frame_weights[b], weights, **near)
        torch.testing.assert_close(got.video[b], video, **near)
        torch.testing.assert_close(got.classes[b], torch.stack(classes), **near)
        torch.testing.assert_close(got.cosine[b], cosine, **near)
        torch.testing.assert_close(got.logits[b], cosine / 0.01, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("row", DESIGNS)
def test_every_part_of_every_row_learns(text, build, row):
    model = build(load(overrides=DESIGNS[row]))
    frames, patches = make()
    scores = model(frames, text, categories=torch.tensor([0, 2, 3]), patches=patches)
    assert scores.cosine.shape == (B, 3)
    assert scores.video.shape == (B, D)
    scores.logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.slow
@pytest.mark.parametrize("row", DESIGNS)
def test_every_row_of_the_tables_trains(text, build, row):
    config = load(overrides=DESIGNS[row])
    model = build(config, shaken=False)
    frames, patches = make()
    labels, categories = torch.tensor([2, 0, 2, 3, 0]), torch.tensor([0, 2, 3])
    positives = positive_pairs(labels, categories)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        scores = model(frames, text, categories=categories, patches=patches)
        loss = symmetric_loss(scores.logits, positives, targets=config.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_released_preset_trains_on_patches_too(text, build):
    for see in ("frames", "patches"):
        config = dataclasses.replace(preset("released"), prompts_see=see)
        model = build(config, shaken=False)
        frames, patches = make()
        scores = model(frames, text, patches=patches)
        scores.logits.square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("row", DESIGNS)
def test_an_option_leaves_the_other_parts_weights_alone(build, row):
    paper = build(TrainConfig(), shaken=False).state_dict()
    other = build(load(overrides=DESIGNS[row]), shaken=False).state_dict()
    changes = {
        "context 5": {"prompt.context"},
        "6 a2": {"prompt.context"},
        "9 alpha 1": {"post_prompt.alpha"},
        "9 alpha 0.01": {"post_prompt.alpha"},
        "10 beta 1": {"word_guided.beta"},
        "10 beta 0.01": {"word_guided.beta"},
        "vector gates": {"post_prompt.alpha", "word_guided.beta"},
        "bare meta attention": {"prompt.attention.attention.value.weight"},
    }
    shared = paper.keys() & other.keys()
    differing = {n for n in shared if not torch.equal(paper[n], other[n])}
    assert {n for n in differing if not n.startswith("prompt.")} == {
        n for n in changes.get(row, set()) if not n.startswith("prompt.")
    }
    if row not in (
        "6 a1",
        "6 a2",
        "6 a3",
        "context 5",
        "bare meta attention",
        "residual adapter",
    ):
        assert not any(n.startswith("prompt.") for n in differing)


# what an option moves and what it leaves alone, all other weights being equal; the rest
# depends on whether the pick moves
MOVES = {
    "4 baseline": ("classes video", ""),
    "4 + pre-prompt": ("classes video", ""),
    "4 + post-prompt": ("video", "classes"),
    "5 none": ("classes", ""),
    "5 hand-crafted": ("classes", ""),
    "5 learnable": ("classes", ""),
    "5 pre": ("classes", ""),
    "5 post": ("classes weights video", ""),
    "6 a1": ("classes weights video", ""),
    "6 a2": ("classes weights video", ""),
    "6 a3": ("classes weights video", ""),
    "7 without mean pooling": ("video", "classes weights"),
    "8 words": ("", "classes"),
    "9 alpha 1": ("classes", ""),
    "10 beta 1": ("video", "classes weights"),
    "no temporal transformer": ("weights video", "classes"),
    "no temporal residual": ("weights video", "classes"),
    "prompts see temporal": ("classes weights video", ""),
    "prompts see patches": ("classes weights video", ""),
    "word temperature": ("weights video", "classes"),
    "context 5": ("classes weights video", ""),
    "bare meta attention": ("classes weights video", ""),
    "residual adapter": ("classes weights video", ""),
    "post layers": ("classes", ""),
    "word norms": ("weights video", "classes"),
    "vector gates": ("", "classes weights video logits"),
    "normalise frames": ("video", "classes"),
    "learn temperature": ("", "classes weights video logits"),
    "multi-hot": ("", "classes weights video logits"),
}


@pytest.mark.parametrize("row", MOVES)
def test_an_option_moves_what_it_should_and_nothing_else(text, build, row):
    paper, other = build(TrainConfig()), build(load(overrides=DESIGNS[row]))
    shared, own = paper.state_dict(), other.state_dict()
    gates = {"post_prompt.alpha", "word_guided.beta"}
    fitting = {n: v for n, v in shared.items() if n in own and own[n].shape == v.shape}
    other.load_state_dict({n: v for n, v in fitting.items() if n not in gates}, strict=False)
    frames, patches = make()

    def results(model):
        scores = model(frames, text, patches=patches)
        weights = torch.zeros(B, T) if scores.frame_weights is None else scores.frame_weights
        return {
            "classes": scores.classes.expand(B, -1, -1),
            "weights": weights,
            "video": scores.video,
            "logits": scores.logits,
        }

    before, after = results(paper), results(other)
    moved, kept = MOVES[row]
    for name in moved.split():
        assert (after[name] - before[name]).abs().max() > 1e-3, name
    for name in kept.split():
        # 1 / tau and the exponential of its logarithm differ in the last place
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-4)


def test_options_that_move_nothing_at_the_start_are_there(build):
    model = build(load(overrides=["vector_gates=true"]))
    assert model.post_prompt.alpha.shape == model.word_guided.beta.shape == (D,)
    assert build(load(overrides=["mean_pool=false"])).word_guided.beta is None
    assert build(load(overrides=["word_norms=true"])).word_guided.word_norm.weight.shape == (D,)


def test_what_nothing_uses_is_not_there(text, build):
    model = build(load(overrides=["temporal_layers=0", "prompts_see=patches"], base="baseline"))
    assert list(model.parameters()) == []
    frames, _ = make()
    assert torch.equal(model(frames, text).video, frames.mean(1))


def test_the_pick_of_the_release_standardises_the_classes(text, build):
    model = build(load(overrides=["word_norms=true"]))
    plain, normed, got = [], [], []
    for seed in range(13):
        frames, _ = make(seed)
        scores = model(frames, text)
        mean = model.temporal(frames).mean(1)
        got.append(scores.picked)
        plain.append(pick(mean, scores.classes))
        normed.append(pick(mean, scores.classes, norms=True))
    assert torch.equal(torch.cat(got), torch.cat(normed))
    assert not torch.equal(torch.cat(got), torch.cat(plain))


def test_parts_start_from_streams_of_their_own(build):
    model = build(TrainConfig(), shaken=False)
    first = model.temporal.positions.flatten()[:3] / 0.01
    assert (first - model.prompt.context.flatten()[:3] / 0.02).abs().min() > 1e-3


def test_the_seed_fixes_the_weights_and_the_callers_state_is_kept(build):
    state = torch.get_rng_state()
    first = build(TrainConfig(seed=3), shaken=False).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = build(TrainConfig(seed=3), shaken=False).state_dict()
    assert all(torch.equal(first[n], again[n]) for n in first)
    other = build(TrainConfig(seed=4), shaken=False).state_dict()
    for name in ("temporal.positions", "prompt.context", "post_prompt.blocks.0.widen.weight"):
        assert not torch.equal(first[name], other[name])


def test_untrained_it_is_close_to_frozen_clip(clip, text, build):
    frames = make()[0][:, :1] + 0.3 * make(1)[0]  # frames of a video are alike
    frozen = (
        F.normalize(frames.mean(1), dim=-1)
        @ F.normalize(clip.model.encode_text(clip.tokenize(NAMES)), dim=-1).T
    )
    baseline = build(preset("baseline"), shaken=False)(frames, text).cosine
    # only the frame positions, of spread 0.01, are between the two
    torch.testing.assert_close(baseline, frozen, rtol=0, atol=0.02)
    both = build(TrainConfig(prompt="none"), shaken=False)(frames, text).cosine
    torch.testing.assert_close(both, frozen, rtol=0, atol=0.02)
    assert torch.equal(both.argmax(1), frozen.argmax(1))


@pytest.fixture(scope="module")
def started():
    """Makes the answers of a model started from words on tinyclip, and frozen CLIP's."""
    tinyclip = clips.load(ClipName(model=TINYCLIP, pretrained=None))
    names = ["ring moving left", "star growing", "disk standing still", "square shrinking"]
    text = TextTower(tinyclip.model, tinyclip.tokenize(names))
    draw = torch.Generator().manual_seed(5)
    videos = torch.randn(40, 1, 128, generator=draw)
    frames = videos + 0.3 * torch.randn(40, T, 128, generator=draw)

    def started(*settings, words="This is a video about", base="paper"):
        config = load(overrides=[f"context_start={words}", *settings], base=base)
        model = build_model(config, tinyclip, num_frames=T, patches=None)
        classes = tinyclip.model.encode_text(
            tinyclip.tokenize([f"{words} {name}" for name in names])
        )
        unit = F.normalize(classes, dim=-1).T
        if config.normalise == "frames":
            return model(frames, text), (F.normalize(frames, dim=-1) @ unit).mean(1)
        return model(frames, text), F.normalize(frames.mean(1), dim=-1) @ unit

    return started


@pytest.mark.parametrize("prompt", ["pre-prompt", "learnable"])
@pytest.mark.parametrize("words", ["This is a video about", "a video of", "about"])
def test_started_from_words_it_is_frozen_clip(started, prompt, words):
    """Without frame positions and Eq. 9; the temporal residual doubles the mean, no more."""
    scores, frozen = started(f"prompt={prompt}", "word_guided=false", words=words)
    # the positions have mean zero over time, so the mean of the frames does not see them
    torch.testing.assert_close(scores.cosine, frozen, rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", [["design=a2"], ["design=a3"], ["adapter=residual"]])
def test_other_designs_start_at_frozen_clip_too(started, settings):
    scores, frozen = started(*settings, "word_guided=false")
    torch.testing.assert_close(scores.cosine, frozen, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("base", "length"), [("paper", 1.0), ("words", 1.1)])
def test_it_starts_within_what_positions_and_eq_9_add(started, base, length):
    """v_hat = 2 m + beta * sum_t S_t (2 f_t + p_t), m the mean: an angle of at most that sum
    against 2 m; beta is 0.1.  It also adds a tenth of m's length, which a cosine does not see
    and `normalise = "frames"` does."""
    scores, frozen = started(base=base)
    torch.testing.assert_close(scores.cosine / length, frozen, rtol=0, atol=0.02)
    assert torch.equal(scores.cosine.argmax(1), frozen.argmax(1))
    alone, _ = started("temporal_layers=0", base=base)
    torch.testing.assert_close(alone.cosine / length, frozen, rtol=0, atol=0.02)


def test_the_preset_starts_with_the_mean_of_the_frames_logits(started):
    """Without frame positions and Eq. 9; tau is CLIP's own."""
    scores, frozen = started("temporal_layers=0", "word_guided=false", base="words")
    tau = clips.load(ClipName(model=TINYCLIP, pretrained=None)).temperature
    assert abs(tau - 0.01) > 0.02
    torch.testing.assert_close(scores.logits, frozen / tau, rtol=0, atol=1e-4)


def test_a1_does_not_start_at_frozen_clip(started):
    scores, frozen = started("design=a1", "word_guided=false")
    assert (scores.cosine - frozen).abs().max() > 0.02


def test_a_word_that_clip_never_learned_is_refused(started):
    with pytest.raises(ConfigError) as refused:
        started(words="a photo of a zebra")
    assert str(refused.value) == (
        "context_start: tinyclip never learned the word 'zebra', its row in the token table is "
        "zero; use other words, or context_start=random"
    )


def test_more_words_than_the_tower_has_positions_for_are_refused(started):
    with pytest.raises(ConfigError) as refused:
        started(words=" ".join(90 * ["about"]))
    assert str(refused.value) == (
        "context_start: 90 words are more than the text tower has positions for; use fewer"
    )


def test_hand_crafted_is_the_template_filled_in(clip, text, build):
    model = build(load(overrides=["prompt=hand-crafted"], base="baseline"))
    got = model(make()[0], text).classes
    filled = clip.tokenize([f"This is a video about {name}" for name in NAMES])
    torch.testing.assert_close(got[0], clip.model.encode_text(filled), rtol=1e-4, atol=1e-5)
    assert model.parameter_counts()["pre_prompt"] == 0


def test_videos_do_not_see_each_other(text, build):
    model = build(TrainConfig())
    frames, _ = make()
    whole = model(frames, text)
    alone = model(frames[2:3], text)
    torch.testing.assert_close(alone.cosine, whole.cosine[2:3])
    torch.testing.assert_close(alone.video, whole.video[2:3])


def test_categories_come_in_the_order_asked_for(text, build):
    model = build(TrainConfig())
    frames, _ = make()
    whole = model(frames, text)
    order = torch.tensor([2, 0, 3, 1])
    turned = model(frames, text, categories=order)
    torch.testing.assert_close(turned.cosine, whole.cosine[:, order])
    assert torch.equal(order[turned.picked], whole.picked)


def test_the_pick_by_words_sums_over_the_words(clip, text, build):
    model = build(load(overrides=["word_source=words", "prompt=none", "post_prompt=false"]))
    frames, _ = make()
    mean = model.temporal(frames).mean(1)
    likeness = []
    for row in clip.tokenize(NAMES):
        name = clip.model.token_embedding(row[: int(row.argmax()) + 1])
        words = naive_text(clip, name[None])[0, 1:-1]
        likeness.append(F.cosine_similarity(mean[:, None], words[None], dim=-1).sum(1))
    assert torch.equal(model(frames, text).picked, torch.stack(likeness, 1).argmax(1))


def test_frames_on_the_sphere_and_a_video_that_is_not(text, build):
    frames, _ = make()
    model = build(load(overrides=["normalise=frames"], base="baseline"))
    scores = model(frames, text)
    unit = F.normalize(model.temporal(frames), dim=-1)
    torch.testing.assert_close(scores.video, unit.mean(1))
    want = unit.mean(1) @ F.normalize(scores.classes[0], dim=-1).T
    torch.testing.assert_close(scores.cosine, want)


def test_a_learned_temperature_starts_at_the_setting(text, build):
    frames, _ = make()
    fixed = build(TrainConfig(temperature=0.07), shaken=False)(frames, text).logits
    learned = build(TrainConfig(temperature=0.07, learn_temperature=True), shaken=False)
    torch.testing.assert_close(learned(frames, text).logits, fixed, rtol=1e-4, atol=1e-4)
    assert learned.parameter_counts()["temperature"] == 1


def test_clips_own_temperature_needs_a_clip(build):
    with pytest.raises(ConfigError) as refused:
        build(TrainConfig(temperature=None))
    assert str(refused.value) == (
        "temperature: none is CLIP's own; put its number in its place"
    )


def test_autocast_changes_little_and_keeps_cosines_float32(text, build):
    frames, _ = make()
    model = build(TrainConfig(), shaken=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(frames, text)
    assert half.cosine.dtype == torch.float32
    torch.testing.assert_close(half.cosine, model(frames, text).cosine, rtol=0, atol=0.05)


COUNTS = {
    "4 baseline": (9_461_248, 9_461_248),
    "4 + pre-prompt": (3_293_824, 12_755_072),
    "4 + post-prompt": (3_153_409, 15_908_481),
    "4 + word-guided": (1, 15_908_482),
}


def test_parameters_at_clips_size_are_table_4s():
    parts = ["temporal", "pre_prompt", "post_prompt", "word_guided"]
    for (row, (part, total)), name in zip(COUNTS.items(), parts, strict=True):
        with torch.device("meta"):
            model = BiEfficient(
                load(overrides=DESIGNS[row]), dim=512, text_width=512, num_frames=8
            )
        counts = model.parameter_counts()
        assert counts[name] == part
        assert counts["total"] == total == sum(p.numel() for p in model.parameters())
    millions = [total // 10**6 for _, total in COUNTS.values()]
    assert millions == [9, 12, 15, 15]


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ([], (16, 1)),
        (["design=a1"], (16, T)),
        (["design=a1", "prompts_see=patches"], (16, P)),
        (["design=a2"], (0, 16)),
        (["design=a3"], (16, 1)),
        (["prompt=learnable"], (16, 0)),
        (["prompt=hand-crafted"], (5, 0)),
        (["prompt=none"], (0, 0)),
    ],
)
def test_rows_before_the_name_are_those_that_a_design_makes(build, settings, rows):
    assert build(load(overrides=settings)).prompt_rows == rows


def test_patches_that_are_not_there_are_asked_for(text, build):
    with pytest.raises(
        ConfigError, match="prompts_see='patches' needs a store with patch tokens"
    ):
        BiEfficient(TrainConfig(prompts_see="patches"), dim=D, text_width=W, num_frames=T)
    model = build(TrainConfig(prompts_see="patches"))
    with pytest.raises(ValueError, match="expected patches, got none"):
        model(make()[0], text)


def test_a_template_and_its_setting_go_together():
    with pytest.raises(ValueError, match=r"prompt='hand-crafted', .* do not go together"):
        BiEfficient(TrainConfig(prompt="hand-crafted"), dim=D, text_width=W, num_frames=T)


def test_a_state_goes_from_one_model_to_another(text, build):
    model = build(TrainConfig())
    other = build(TrainConfig(seed=5), shaken=False)
    other.load_state_dict(model.state_dict())
    frames, _ = make()
    assert torch.equal(other(frames, text).logits, model(frames, text).logits)
