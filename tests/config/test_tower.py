from functools import partial

import pytest

from bltjax.config import ComputeConfig, TransformerConfig, swiglu_width

tower = partial(TransformerConfig, width=16, layers=1, heads=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tower(width=0), "width=0"),
        (lambda: tower(heads=0), "heads=0"),
        (lambda: tower(heads=3), "heads=3: must divide the width, 16"),
        (lambda: tower(heads=16), "heads=16: .*even"),
        (lambda: tower(layers=-1), "layers=-1"),
        (lambda: tower(kv_heads=0), "kv_heads=0"),
        (lambda: tower(heads=4, kv_heads=3), "kv_heads=3: must divide heads, 4"),
        (lambda: tower(heads=2, kv_heads=4), "kv_heads=4: must divide heads, 2"),
        (lambda: tower(hidden=0), "hidden=0"),
        (lambda: tower(window=0), "window=0"),
        (lambda: tower(rope_theta=1.0), "rope_theta=1.0"),
        (lambda: tower(norm_epsilon=0.0), "norm_epsilon=0.0"),
        (lambda: tower(init_std=-0.1), "init_std=-0.1"),
        (lambda: tower(init_factor="dept"), "init_factor='dept': choose.*Did you mean 'depth'"),
        (lambda: ComputeConfig(dtype="float16"), r"compute\.dtype='float16': choose one of 'float32', 'bfloat16'"),
        (lambda: ComputeConfig(remat="all"), r"compute\.remat='all'"),
        (lambda: ComputeConfig(attention="flash"), r"compute\.attention='flash'"),
    ],
)
def test_a_refused_value_is_named(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("width", "hidden"),
    [(512, 1536), (768, 2048), (1024, 2816), (1280, 3584), (2048, 5632), (2560, 6912), (3072, 8192), (4096, 11008)],
)
def test_feed_forward_widths_of_the_released_code(width, hidden):
    assert swiglu_width(width) == hidden == TransformerConfig(width, 1, 2).hidden_width
