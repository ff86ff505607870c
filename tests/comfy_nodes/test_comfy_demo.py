"""The host's network with patches of another side than the host thinks of."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from dpdmd_studio.comfy_nodes.host import demo


class Host:
    """Counts tokens as ComfyUI's network does, and takes patches as its model patcher does."""

    def __init__(self, patch: int) -> None:
        def count(hw):
            return tuple((side + 1) // patch for side in hw)

        self.objects = {
            "diffusion_model.x_embedder": SimpleNamespace(patch_size=(patch, patch)),
            "diffusion_model.cropped_pos_embed": lambda hw, device=None: count(hw),
            "diffusion_model.unpatchify": lambda x, hw: (x, count(hw)),
        }

    def get_model_object(self, name):
        return self.objects[name]

    def add_object_patch(self, name, what):
        self.objects[name] = what


@pytest.mark.parametrize(("patch", "tokens"), [(1, (8, 9)), (2, (4, 5)), (3, (3, 3)), (4, (2, 3))])
def test_tokens_are_counted_by_the_patch(patch, tokens):
    host = Host(patch)
    demo._count_by_patch(host)
    assert host.objects["diffusion_model.cropped_pos_embed"]((8, 9), device="cpu") == tokens
    assert host.objects["diffusion_model.unpatchify"]("x", hw=(8, 9)) == ("x", tokens)
