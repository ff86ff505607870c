"""LoHa, LoKr and Tucker updates: as pairs they add exactly what their definitions say."""

import lora_networks
import pytest
import torch
from dpdmd_studio.core.errors import LoraError
from dpdmd_studio.core.lora.file import lora_deltas, merge_lora, parameter_shapes, read_lora
from dpdmd_studio.core.lora.math import delta
from safetensors.torch import save_file

OUT, IN, RANK, KERNEL, ALPHA = 12, 8, 3, (3, 3), 6.0


def drawn(**shapes):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def tucker(core, down, up):
    """A convolution's weight (out, in, height, width) from its core, as LyCORIS defines it."""
    return torch.einsum("ijkl,jr,ip->prkl", core, down, up).contiguous()


def loha(kernel=(), core=False):
    columns = IN * (9 if kernel and not core else 1)
    sides = (RANK, OUT) if core else (OUT, RANK)
    names = {f"hada_w{n}_a": sides for n in "12"} | {f"hada_w{n}_b": (RANK, columns) for n in "12"}
    names |= {f"hada_t{n}": (RANK, RANK, *kernel) for n in "12"} if core else {}
    t = drawn(**names)
    if core:
        first, second = (
            tucker(t[f"hada_t{n}"], t[f"hada_w{n}_b"], t[f"hada_w{n}_a"]) for n in "12"
        )
    else:
        first, second = (t[f"hada_w{n}_a"] @ t[f"hada_w{n}_b"] for n in "12")
    return t, (first * second).reshape(OUT, IN, *kernel) * ALPHA / RANK


def lokr(first="whole", second="product", kernel=()):
    """w1 is (3, 2) and w2 (4, 4, ...): each whole, a product, or a product with a core."""
    t, factors = {}, []
    for number, kind, rows, columns in (("1", first, 3, 2), ("2", second, 4, 4)):
        own = kernel if number == "2" else ()
        names = {
            "whole": {"": (rows, columns, *own)},
            "product": {"_a": (rows, RANK), "_b": (RANK, columns * (9 if own else 1))},
            "core": {"_a": (RANK, rows), "_b": (RANK, columns)},
        }[kind]
        part = drawn(**{f"lokr_w{number}{end}": shape for end, shape in names.items()})
        if kind == "core":
            part |= drawn(**{f"lokr_t{number}": (RANK, RANK, *own)})
            a, b, core = (part[f"lokr_{x}"] for x in (f"w{number}_a", f"w{number}_b", f"t{number}"))
            factor = tucker(core, b, a)
        elif kind == "product":
            factor = part[f"lokr_w{number}_a"] @ part[f"lokr_w{number}_b"]
        else:
            factor = part[f"lokr_w{number}"]
        t |= part
        factors.append(factor)
    left, right = factors
    left = left.reshape(*left.shape, *(1,) * (right.ndim - left.ndim))
    scale = 1 if first == second == "whole" else ALPHA / RANK
    return t, torch.kron(left, right).reshape(OUT, IN, *kernel) * scale


def locon():
    t = drawn(lora_down=(RANK, IN, 1, 1), lora_up=(OUT, RANK, 1, 1), lora_mid=(RANK, RANK, *KERNEL))
    up = t["lora_up"].flatten(1).T
    change = tucker(t["lora_mid"], t["lora_down"].flatten(1), up) * ALPHA / RANK
    return {f"{name}.weight": tensor for name, tensor in t.items()}, change


KINDS = {
    "loha": loha,
    "loha convolution": lambda: loha(KERNEL),
    "loha with a core": lambda: loha(KERNEL, core=True),
    "lokr": lokr,
    "lokr whole": lambda: lokr("whole", "whole"),
    "lokr of products": lambda: lokr("product", "product"),
    "lokr first a product": lambda: lokr("product", "whole"),
    "lokr convolution": lambda: lokr("whole", "product", KERNEL),
    "lokr whole convolution": lambda: lokr("whole", "whole", KERNEL),
    "lokr with a core": lambda: lokr("whole", "core", KERNEL),
    "locon with a core": locon,
}


def written(path, tensors, module="lora_unet_x"):
    named = {f"{module}.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named | {f"{module}.alpha": torch.tensor(ALPHA)}, path)
    return read_lora(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_adds_what_its_definition_says(kind, tmp_path):
    tensors, change = KINDS[kind]()
    lora = written(tmp_path / "x.safetensors", tensors)
    (module,) = lora.modules.values()
    torch.testing.assert_close(delta(lora.pair(module), change.shape), change)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_tensor_is_named(kind, tmp_path):
    tensors, _ = KINDS[kind]()
    for name in tensors:
        if name.startswith(("hada_t", "lokr_t", "lora_mid")):
            continue
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        part = "half" if name.startswith("lora_") else name.removesuffix("_a").removesuffix("_b")
        with pytest.raises(LoraError, match=f"has no .*{part}"):
            written(tmp_path / "x.safetensors", rest)


def test_sizes_that_do_not_meet_are_named(tmp_path):
    tensors, _ = loha()
    tensors["hada_w2_b"] = torch.ones(RANK, IN + 1)
    with pytest.raises(LoraError, match=r"sizes contradict.*hada_w2_b \(3, 9\)"):
        written(tmp_path / "x.safetensors", tensors)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_a_network_takes_it_and_its_family_shows(kind, tmp_path):
    network, family, config = lora_networks.build("sd1")
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"  # 768 -> 32
    if kind == "loha":
        names = {
            f"hada_w{n}_{half}": s for n in "12" for half, s in (("a", (32, 2)), ("b", (2, 768)))
        }
    else:
        names = {"lokr_w1": (4, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 96)}
    tensors = drawn(**names)
    lora = written(tmp_path / "x.safetensors", tensors, f"lora_unet_{module.replace('.', '_')}")
    assert lora.family == "sd1"
    before = network.get_submodule(module).weight.clone()
    deltas = lora_deltas(lora, family, config, parameter_shapes(network), 0.5)
    merge_lora(network, deltas)
    if kind == "loha":
        change = tensors["hada_w1_a"] @ tensors["hada_w1_b"]
        change = change * (tensors["hada_w2_a"] @ tensors["hada_w2_b"])
    else:
        change = torch.kron(tensors["lokr_w1"], tensors["lokr_w2_a"] @ tensors["lokr_w2_b"])
    torch.testing.assert_close(
        network.get_submodule(module).weight, before + 0.5 * ALPHA / 2 * change
    )


def test_a_fused_update_reaches_q_k_and_v(tmp_path):
    network, family, config = lora_networks.build("sd3")
    shapes = parameter_shapes(network)
    width = shapes["transformer_blocks.0.attn.to_q.weight"][0]
    tensors = drawn(lokr_w1=(6, 4), lokr_w2=(3 * width // 6, width // 4))
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    found = lora_deltas(written(tmp_path / "x.safetensors", tensors, name), family, config, shapes)
    fused = torch.kron(tensors["lokr_w1"], tensors["lokr_w2"])
    for part, letter in enumerate("qkv"):
        module = f"transformer_blocks.0.attn.to_{letter}.weight"
        own = fused[part * width : (part + 1) * width]
        torch.testing.assert_close(delta(found[module], shapes[module]), own)
