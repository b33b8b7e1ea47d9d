"""Settings, a model's designs and watches, for tests that train."""

import os
import signal

import pytest

DESIGNS = {
    "4 baseline": ["prompt=none", "post_prompt=false", "word_guided=false"],
    "4 + pre-prompt": ["post_prompt=false", "word_guided=false"],
    "4 + post-prompt": ["word_guided=false"],
    "4 + word-guided": [],
    "5 none": ["prompt=none", "post_prompt=false"],
    "5 hand-crafted": ["prompt=hand-crafted", "post_prompt=false"],
    "5 learnable": ["prompt=learnable", "post_prompt=false"],
    "5 pre": ["post_prompt=false"],
    "5 post": ["prompt=none"],
    "6 a1": ["design=a1"],
    "6 a2": ["design=a2"],
    "6 a3": ["design=a3"],
    "7 without mean pooling": ["mean_pool=false"],
    "8 words": ["word_source=words"],
    "9 alpha 1": ["alpha=1"],
    "9 alpha 0.01": ["alpha=0.01"],
    "10 beta 1": ["beta=1"],
    "10 beta 0.01": ["beta=0.01"],
    "no temporal transformer": ["temporal_layers=0"],
    "no temporal residual": ["temporal_residual=false"],
    "prompts see temporal": ["prompts_see=temporal"],
    "prompts see patches": ["prompts_see=patches"],
    "word temperature": ["word_temperature=0.01"],
    "context 5": ["num_context=5"],
    "bare meta attention": ["meta_attention=bare"],
    "residual adapter": ["adapter=residual"],
    "post layers": ["post_layers=2"],
    "word norms": ["word_norms=true"],
    "word rows": ["word_rows=prompt"],
    "vector gates": ["vector_gates=true"],
    "normalise frames": ["normalise=frames"],
    "learn temperature": ["learn_temperature=true"],
    "multi-hot": ["targets=multi-hot"],
}
"""Each row of Tables 4 to 10 out of the default, and every other option of the model once."""

ALIKE = {
    *("4 + pre-prompt", "5 none", "5 pre", "5 post", "9 alpha 1", "9 alpha 0.01"),
    *("10 beta 1", "10 beta 0.01", "context 5", "word temperature", "post layers"),
    *("prompts see temporal", "no temporal residual", "8 words", "word norms"),
}
"""Rows that differ from others by a number, or combine what others have."""


def few_of(rows):
    """All rows as parameters of a test; those that are alike are slow."""
    return [pytest.param(row, marks=pytest.mark.slow) if row in ALIKE else row for row in rows]


def quiet(*progress):
    """Watch nothing."""


def interrupt_at(step, number=signal.SIGINT):
    """Send this process a real signal, by default Ctrl-C's, once so many steps are done."""

    def watch(done, total, loss):
        if done == step:
            os.kill(os.getpid(), number)

    return watch
