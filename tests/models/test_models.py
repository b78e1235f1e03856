"""The networks: names that the contract fixes, costs against an outside counter, what option A does to a tensor, and
where pretrained weights come from. No test needs the network."""

import hashlib
import json
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from cases import each, few
from fvcore.nn import FlopCountAnalysis
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

from codeq.common import downloading
from codeq.common.errors import CodeqError
from codeq.metrics import QuantizationComparison
from codeq.models import MODELS, CifarMLP, LeNet5, build_model, resnet18, resnet20, resnet32, vit
from codeq.models.cifar_resnet import RESNET20_WEIGHTS, BasicBlock, ChannelPadShortcut
from codeq.models.vit import HUB_ID
from codeq.models.weights import checkpoint_path, loading_weights

CIFAR_RESNETS = {"resnet20": 20, "resnet32": 32, "resnet44": 44, "resnet56": 56, "resnet110": 110}
SMALL_VIT = {"img_size": 32, "patch_size": 4}
BUILDS = [
    *((name, SMALL_VIT if name == "vit" else {}) for name in MODELS),
    *((name, {"shortcut": "B"}) for name in CIFAR_RESNETS),
]
SMALL = {"resnet20", "mlp", "lenet5", "resnet18", "vit"}
BUILDS_AND_SIZES = sorted(
    [*((*build, 32) for build in BUILDS), *((name, {}, 224) for name in ("resnet18", "resnet50", "vit"))],
    key=lambda build: build[0] not in SMALL or (build[0] == "vit" and build[2] == 224),
)


def weight_macs(model, size=32):
    """MACs of convolutions and linear layers by fvcore, which counts one multiply-add as one."""
    analysis = FlopCountAnalysis(model.eval(), torch.zeros(1, 3, size, size))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = analysis.by_operator()
    return by_operator["conv"] + by_operator["linear"] + by_operator["addmm"]


@pytest.mark.parametrize(("name", "kwargs", "size"), few(BUILDS_AND_SIZES, 7))
def test_macs_are_those_of_an_outside_counter(name, kwargs, size):
    model = MODELS[name](**kwargs)
    comparison = QuantizationComparison((3, size, size))
    comparison.set_baseline(model)
    assert comparison.baseline.total_macs == weight_macs(model, size)


@pytest.mark.parametrize(("kwargs", "patches"), [({}, 14 * 14), (SMALL_VIT, 8 * 8)])
def test_vit_has_the_macs_written_out_by_hand(kwargs, patches):
    size = kwargs.get("img_size", 224)
    comparison = QuantizationComparison((3, size, size))
    comparison.set_baseline(vit(num_classes=7, **kwargs))
    block = 192 * 3 * 192 + 192 * 192 + 2 * 192 * 4 * 192  # qkv, proj, fc1 and fc2 at every token
    pixels = 3 * size * size // patches
    assert comparison.baseline.total_macs == patches * pixels * 192 + 12 * (patches + 1) * block + 192 * 7


@pytest.mark.parametrize(("shortcut", "macs", "weights"), [("A", 40_551_040, 268_336), ("B", 40_813_184, 270_896)])
def test_resnet20_has_the_published_size(shortcut, macs, weights):
    model = resnet20(shortcut=shortcut)
    assert weight_macs(model) == macs
    assert sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))) == weights


@each(("name", "depth"), CIFAR_RESNETS.items())
def test_depth_counts_the_layers_on_the_longest_path(name, depth):
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in MODELS[name]().modules()) == depth


def test_names_of_the_submodules_are_those_of_the_contract():
    model = resnet20()
    assert [name for name, _ in model.named_children()] == ["conv1", "bn1", "layer1", "layer2", "layer3", "linear"]
    for stage in (model.layer1, model.layer2, model.layer3):
        assert [[name for name, _ in block.named_children()] for block in stage] == [
            ["conv1", "bn1", "conv2", "bn2", "shortcut"]
        ] * 3
    assert [tuple(m.weight.shape) for m in (CifarMLP().fc1, CifarMLP().fc2, CifarMLP().fc3)] == [
        (120, 3072),
        (84, 120),
        (10, 84),
    ]


@each("classes", [2, 10, 100])
@each(("name", "kwargs"), BUILDS)
def test_every_model_gives_a_logit_a_class_with_finite_gradients(name, kwargs, classes):
    if CIFAR_RESNETS.get(name, 0) > 32 and classes != 10:
        pytest.skip("the shallower ones show it")
    model = MODELS[name](num_classes=classes, **kwargs)
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4) + 1
    y = ChannelPadShortcut(2)(x).numpy()
    want = np.zeros((2, 7, 2, 2), dtype=np.float32)
    for n, c, i, j in np.ndindex(2, 3, 2, 2):
        want[n, c + 2, i, j] = x[n, c, 2 * i, 2 * j]
    np.testing.assert_array_equal(y, want)


def test_a_block_adds_its_shortcut_before_the_last_relu():
    block = BasicBlock(4, 4, 1, "A").eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x.relu())


def test_option_b_projects_where_the_shape_changes_and_only_there():
    model = resnet32(shortcut="B")
    projected = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert projected == ["layer2.0.shortcut.0", "layer3.0.shortcut.0"]


def test_weights_start_with_the_variance_of_he_and_others():
    for name, module in resnet20().named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1), name


def test_an_unknown_shortcut_is_a_clear_error():
    with pytest.raises(CodeqError, match=r"shortcut='C': must be 'A' .* or 'B'"):
        resnet20(shortcut="C")


def test_the_same_random_state_gives_the_same_weights():
    torch.manual_seed(3)
    one = resnet20()
    torch.manual_seed(3)
    two = resnet20()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"img_size": 30, "patch_size": 4}, r"img_size=30: must be a multiple of patch_size=4"),
        ({"img_size": 0}, r"img_size=0: must be an integer of at least 1"),
        ({"patch_size": 4.0}, r"patch_size=4.0: must be an integer"),
        ({"patch_size": True}, r"patch_size=True: must be an integer"),
    ],
)
def test_patches_that_do_not_fit_the_image_are_a_clear_error(kwargs, message):
    with pytest.raises(CodeqError, match=message):
        vit(**kwargs)


def test_sizes_of_a_vit_are_integers_of_any_kind():
    model = vit(num_classes=2, img_size=np.int64(32), patch_size=np.int32(16))
    assert model.patch_embed.num_patches == 4


@pytest.fixture
def checkpoints(monkeypatch, tmp_path) -> Path:
    """Empty folders where torch and Hugging Face look for weights, and no network."""

    def no_network(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setattr(downloading, "urlopen", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


WEIGHTS = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "vit": "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors",
}


@pytest.mark.parametrize(("name", "file"), WEIGHTS.items())
def test_without_network_the_error_says_where_to_put_which_file(checkpoints, name, file):
    with pytest.raises(CodeqError, match="Name or service not known") as error:
        MODELS[name](pretrained=True)
    cache = f", or {HUB_ID} into the cache of Hugging Face (HF_HOME)" if name == "vit" else ""
    assert f"as {checkpoints / file}{cache}, or leave out pretrained" in str(error.value)
    source = f"{HUB_ID}/resolve/main/model.safetensors" if name == "vit" else f"pytorch.org/models/{file}"
    assert source in str(error.value)


@pytest.mark.parametrize(("name", "file"), WEIGHTS.items())
def test_a_damaged_file_of_weights_is_a_clear_error(checkpoints, name, file):
    (checkpoints / file).write_bytes(b"half a file")
    with pytest.raises(CodeqError, match=f"{file} does not hold the weights of .*delete it"):
        MODELS[name](pretrained=True)


@pytest.mark.parametrize("classes", [1000, 10])
def test_pretrained_weights_are_loaded_and_other_classes_get_a_new_classifier(checkpoints, classes):
    published = resnet18()
    torch.save(published.state_dict(), checkpoints / WEIGHTS["resnet18"])
    model = resnet18(num_classes=classes, pretrained=True)
    assert torch.equal(model.layer4[1].conv2.weight, published.layer4[1].conv2.weight)
    assert model.fc.weight.shape == (classes, 512)
    assert (classes == 1000) == torch.equal(model.fc.weight[:10], published.fc.weight[:10])


@pytest.mark.parametrize("kwargs", [{}, {"num_classes": 10}, {"num_classes": 10, **SMALL_VIT}])
def test_pretrained_vit_fits_its_weights_to_classes_and_sizes(checkpoints, kwargs):
    published = vit()
    with torch.no_grad():
        published.pos_embed.fill_(3.0)  # interpolated, a constant stays what it is
    save_file(published.state_dict(), checkpoints / WEIGHTS["vit"])
    model = vit(pretrained=True, **kwargs)
    assert torch.equal(model.blocks[11].mlp.fc1.weight, published.blocks[11].mlp.fc1.weight)
    torch.testing.assert_close(model.pos_embed, torch.full_like(model.pos_embed, 3.0))
    assert model.pos_embed.shape[1] == (65 if "img_size" in kwargs else 197)
    assert ("num_classes" not in kwargs) == torch.equal(model.head.weight[:10], published.head.weight[:10])
    size = kwargs.get("img_size", 224)
    assert model(torch.zeros(1, 3, size, size)).isfinite().all()


def test_pretrained_vit_is_found_in_the_cache_of_hugging_face(checkpoints, tmp_path):
    published = vit()
    repository = tmp_path / "huggingface" / f"models--{HUB_ID.replace('/', '--')}"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    save_file(published.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    assert torch.equal(vit(pretrained=True).cls_token, published.cls_token)
    assert not list(checkpoints.iterdir())


def test_weights_are_downloaded_once_and_checked(checkpoints, monkeypatch, tmp_path):
    """A local server of files stands for torchvision's: nothing but its address differs."""
    monkeypatch.setattr(downloading, "urlopen", urllib.request.urlopen)
    published = resnet18()
    torch.save(published.state_dict(), tmp_path / "published.pth")
    digits = hashlib.sha256((tmp_path / "published.pth").read_bytes()).hexdigest()[:8]

    def serve(name):
        (tmp_path / name).write_bytes((tmp_path / "published.pth").read_bytes())
        found = models.ResNet18_Weights.IMAGENET1K_V1.value
        monkeypatch.setattr(
            models.ResNet18_Weights.IMAGENET1K_V1, "_value_", replace(found, url=(tmp_path / name).as_uri())
        )

    serve("resnet18-01234567.pth")
    with pytest.raises(
        CodeqError, match=r"downloaded \(what .*resnet18-01234567\.pth sent has another sha256 than 0123"
    ):
        resnet18(pretrained=True)
    assert not list(checkpoints.iterdir())
    serve(f"resnet18-{digits}.pth")
    for _ in range(2):
        assert torch.equal(resnet18(pretrained=True).fc.weight, published.fc.weight)
        (tmp_path / f"resnet18-{digits}.pth").unlink(missing_ok=True)
    assert [path.name for path in checkpoints.iterdir()] == [f"resnet18-{digits}.pth"]


def test_a_server_that_stays_silent_is_given_up_soon(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(downloading, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/net.pth"
        with pytest.raises(CodeqError, match="timed out"), loading_weights(url, checkpoint_path(url)):
            pytest.fail("the server did not answer")
    assert socket.getdefaulttimeout() is None, "the limit is of one connection, not of the process"


def test_lenet_has_the_parameters_and_macs_written_out_by_hand():
    model = LeNet5()
    comparison = QuantizationComparison((3, 32, 32))
    comparison.set_baseline(model)
    weights_of = {"conv1": 6 * 3 * 25, "conv2": 16 * 6 * 25, "fc1": 120 * 400, "fc2": 84 * 120, "fc3": 10 * 84}
    biases = 6 + 16 + 120 + 84 + 10
    assert sum(p.numel() for p in model.parameters()) == sum(weights_of.values()) + biases
    positions = {"conv1": 28 * 28, "conv2": 10 * 10}
    assert comparison.baseline.total_macs == sum(positions.get(name, 1) * n for name, n in weights_of.items())


@each(("size", "features"), [(16, 16), (17, 16), (28, 256), (32, 400), (64, 16 * 13 * 13)])
def test_lenet_takes_images_of_any_size(size, features):
    model = LeNet5(num_classes=3, img_size=size)
    assert model.fc1.in_features == features
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 3)


def test_lenet_refuses_images_that_are_too_small():
    with pytest.raises(CodeqError, match="img_size=15: lenet5 needs images of at least 16 pixels"):
        LeNet5(img_size=15)


@pytest.mark.parametrize("classes", [10, 100])
def test_the_pretrained_resnet20_is_part_of_the_package(classes):
    stored = load_file(RESNET20_WEIGHTS)
    model = build_model("resnet20", classes, {}, pretrained=True)
    for name, tensor in model.state_dict().items():
        assert name.startswith("linear") or torch.equal(tensor, stored[name])
    assert (classes == 10) == torch.equal(model.linear.weight[:10], stored["linear.weight"])
    assert model.linear.out_features == classes


def test_the_pretrained_resnet20_says_how_it_was_trained():
    with safe_open(RESNET20_WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert "CIFAR-10" in metadata["data"]
    assert 0.9 < float(metadata["accuracy"]) < 0.95
    assert json.loads(metadata["settings"])["epochs"] > 0


def test_other_shortcuts_have_no_pretrained_weights():
    with pytest.raises(CodeqError, match="shortcut='B': the pretrained ResNet-20 has shortcuts 'A'"):
        resnet20(shortcut="B", pretrained=True)
