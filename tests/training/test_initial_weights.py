import shutil
from collections import OrderedDict

import pytest
import torch
from cases import each
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from codeq import MODELS, ExperimentConfig, Run, attach_weight_quantizers, run_experiment
from codeq.common.errors import CodeqError
from codeq.training.initial_weights import compare, load_initial_weights, read_source

pytestmark = pytest.mark.usefixtures("without_figures")

LOGIT = "0.parametrizations.weight.0.quantizer.logit_dz"


def net(seed=0, *, quantizer=None, outputs=3, bias=True, **kwargs):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, outputs, bias=bias))
    if quantizer:
        attach_weight_quantizers(model, ["2"], quantizer, kwargs)
    return model


def load(model, source, strict=True):
    load_initial_weights(model, source.state_dict(), "a.pt", strict)


def latent(layer):
    return layer.parametrizations.weight.original if parametrize.is_parametrized(layer) else layer.weight


# --- matching ---------------------------------------------------------------------------------------------------------


@each("target", [None, "deadzone", "uniform"])
@each("source", [None, "uniform"])
def test_a_source_without_quantizer_parameters_fits_float_and_quantized_models(source, target):
    theirs, ours = net(1, quantizer=source), net(2, quantizer=target)
    load(ours, theirs)
    for k in (0, 2):
        assert torch.equal(latent(ours[k]), latent(theirs[k]))
        assert torch.equal(ours[k].bias, theirs[k].bias)


def test_the_quantizer_keeps_its_configured_start_where_the_source_is_float():
    ours = net(2, quantizer="deadzone", init_deadzone_logit=1.5)
    load(ours, net(1))
    assert ours.state_dict()[LOGIT] == 1.5


def test_a_quantized_source_gives_the_parameters_of_its_quantizers_too():
    theirs, ours = net(1, quantizer="deadzone"), net(2, quantizer="deadzone")
    with torch.no_grad():
        theirs[0].parametrizations.weight[0].quantizer.logit_dz.fill_(0.25)
    load(ours, theirs)
    assert ours.state_dict()[LOGIT] == 0.25
    x = torch.randn(6, 4)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_a_learned_scale_is_computed_from_the_loaded_weights_where_the_source_has_none(granularity):
    theirs, ours = net(1), net(2, quantizer="deadzone", scale="learned", granularity=granularity)
    with torch.no_grad():
        theirs[0].weight.mul_(100)
    rho = ours[0].parametrizations.weight[0].quantizer.learned_absmax
    load(ours, theirs)
    flat = theirs[0].weight.abs().reshape(1 if granularity == "layer" else 5, -1)
    expected = torch.quantile(flat.double(), 0.99, dim=1).float()
    assert ours[0].parametrizations.weight[0].quantizer.learned_absmax is rho  # the one an optimizer would hold
    assert torch.allclose(rho.flatten(), expected)


def test_a_learned_scale_is_taken_from_a_source_that_has_one():
    theirs, ours = (net(k, quantizer="deadzone", scale="learned") for k in (1, 2))
    with torch.no_grad():
        theirs[0].parametrizations.weight[0].quantizer.learned_absmax.fill_(7.0)
    load(ours, theirs)
    assert ours[0].parametrizations.weight[0].quantizer.learned_absmax.item() == 7.0


@each("scale", ["learned", "held"])
@each("stored", [["0"], ["0", "1", "2"]])
def test_a_layer_under_several_names_has_one_scale(scale, stored):
    def repeated(seed, **kwargs):
        torch.manual_seed(seed)
        layer = nn.Linear(4, 4)
        model = nn.Sequential(layer, layer, layer)
        if kwargs:
            attach_weight_quantizers(model, [], "deadzone", kwargs)
        return model

    def load_stored(theirs):
        ours = repeated(2, scale=scale)
        state = {name: value for name, value in theirs.state_dict().items() if name.split(".")[0] in stored}
        load_initial_weights(ours, state, "a.pt", strict=True)
        return ours.state_dict()[f"0.parametrizations.weight.0.quantizer.{scale}_absmax"].item()

    theirs = repeated(1)
    with torch.no_grad():
        theirs[0].weight.mul_(100)
    expected = torch.quantile(theirs[0].weight.abs().double(), 0.99).item()
    assert load_stored(theirs) == pytest.approx(expected, rel=1e-6)
    theirs = repeated(1, scale=scale)
    with torch.no_grad():
        getattr(theirs[0].parametrizations.weight[0].quantizer, f"{scale}_absmax").fill_(7.0)
    assert load_stored(theirs) == 7.0


def test_everything_that_does_not_fit_is_named():
    ours, theirs = net(quantizer="deadzone"), net(1, outputs=9, bias=False).state_dict()
    theirs |= {"head.weight": torch.ones(2), "1.weight": torch.ones(5, dtype=torch.int64)}
    theirs["1.bias"] = torch.full((5,), float("nan"))
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(CodeqError) as caught:
        load_initial_weights(ours, theirs, "a.pt", strict=True)
    text = str(caught.value)
    assert "init_from='a.pt' does not fit Sequential: missing: 2.bias; extra: head.weight; different: " in text
    assert "2.weight (shape [9, 5] instead of [3, 5])" in text
    assert "1.weight (torch.int64 instead of torch.float32)" in text
    assert "1.bias (values that are not finite)" in text
    assert "init_from_strict: false" in text
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_what_fits_is_loaded_on_request_and_the_rest_named_in_one_line(capsys):
    ours, theirs = net(quantizer="deadzone"), net(1, outputs=9)
    kept = ours[2].weight.clone()
    load(ours, theirs, strict=False)
    assert torch.equal(latent(ours[0]), theirs[0].weight)
    assert torch.equal(ours[2].weight, kept)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("init_from='a.pt': 7 tensors loaded; not loaded: different: 2.weight (shape [9, 5] ")


def test_a_quantizers_parameters_are_not_loaded_without_their_weight():
    """A trained scale or dead-zone says nothing about weights that are drawn anew."""
    theirs = net(1, quantizer="deadzone", scale="learned").state_dict()
    theirs[LOGIT].fill_(0.1)
    theirs["0.parametrizations.weight.original"] = torch.ones(7, 4)
    ours = net(2, quantizer="deadzone", scale="learned")
    before = ours.state_dict()["0.parametrizations.weight.0.quantizer.learned_absmax"].clone()
    load_initial_weights(ours, theirs, "a.pt", strict=False)
    assert ours.state_dict()[LOGIT] == 3.0
    assert torch.equal(ours.state_dict()["0.parametrizations.weight.0.quantizer.learned_absmax"], before)


def test_a_float_model_refuses_quantizer_parameters_and_takes_the_latent_weights_on_request():
    theirs, ours = net(1, quantizer="deadzone"), net(2)
    with pytest.raises(CodeqError, match=r"extra: 0\.parametrizations\.weight\.0\.quantizer\.logit_dz, "):
        load(ours, theirs)
    load(ours, theirs, strict=False)
    assert torch.equal(ours[0].weight, latent(theirs[0]))


def test_a_quantizer_of_another_kind_is_refused():
    theirs, ours = net(1, quantizer="deadzone", scale="learned"), net(2, quantizer="deadzone")
    with pytest.raises(CodeqError, match=r"extra: 0\..*learned_absmax"):
        load(ours, theirs)


def test_a_missing_parameter_of_a_quantizer_is_refused():
    theirs = net(1, quantizer="deadzone").state_dict()
    del theirs[LOGIT]
    with pytest.raises(CodeqError, match=r"missing: 0\..*logit_dz"):
        load_initial_weights(net(2, quantizer="deadzone"), theirs, "a.pt", strict=True)


def test_a_shared_weight_that_the_file_stores_once_is_not_missing():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

    for quantized in (False, True):
        ours = Tied()
        if quantized:
            attach_weight_quantizers(ours, [], "deadzone", {})
        load_initial_weights(ours, {"a.weight": torch.ones(4, 4)}, "a.pt", strict=True)
        assert torch.equal(latent(ours.b), torch.ones(4, 4))


def test_the_count_of_batches_that_old_files_lack_is_not_missing():
    theirs = {name: value for name, value in net(1).state_dict().items() if not name.endswith("tracked")}
    assert str(compare(net(2), theirs)) == ""


def test_weights_of_another_network_are_refused_even_on_request():
    with pytest.raises(CodeqError, match=r"none of its 1 tensors fits Sequential: missing: 0\.weight, .*extra: x"):
        load_initial_weights(net(), {"x": torch.ones(1)}, "a.pt", strict=False)


def test_long_lists_are_cut():
    with pytest.raises(CodeqError, match="and 12 more") as caught:
        load_initial_weights(net(), {f"x{k}" * 300: torch.ones(1) for k in range(20)}, "a.pt", strict=True)
    assert len(str(caught.value)) < 3000


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_a_state_dict_is_found_in_checkpoints_and_behind_wrappers(tmp_path, wrap, prefix):
    state = net(1).state_dict()
    torch.save(wrap({prefix + name: value for name, value in state.items()}), tmp_path / "a.pth")
    weights, _ = read_source("a.pth")  # relative to the project
    model = net(2)
    load_initial_weights(model, weights, "a.pth", strict=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@each("quantizer", [None, "deadzone"])
@each("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_layer_may_have_the_name_of_a_wrapper(prefix, quantizer):
    def build(seed):
        return nn.Sequential(OrderedDict(module=net(seed, quantizer=quantizer)))

    state, model = build(1).state_dict(), build(2)
    load_initial_weights(model, {prefix + name: value for name, value in state.items()}, "a.pt", strict=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_safetensors(tmp_path):
    state = net(1).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in read_source("a.safetensors")[0].items())


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", Hostile(), "weights_only.*Save model.state_dict"),
        ("a.pt", net(), "weights_only"),
        ("a.pt", b"no file of torch", "a.pt' "),
        ("a.pt", b"", "a.pt' cannot be read"),
        ("a.pt", [1], "holds no state dict, but 'list'"),
        ("a.pt", {}, "holds no state dict"),
        ("a.pt", {"epoch": 3}, "'epoch' is 'int'"),
        ("a.pt", {"w": torch.ones(2).to_sparse()}, "'w' is not a dense tensor"),
        ("a.safetensors", b"no safetensors", "a.safetensors' cannot be read"),
        ("a.onnx", b"x", "must be the folder of a run, or end in .pt"),
        ("a.pt", None, "does not exist"),
        (".", None, "has no checkpoint yet"),
    ],
)
def test_what_holds_no_weights_is_refused_and_nothing_executed(tmp_path, capsys, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(CodeqError, match=message):
        read_source(name)[0]
    assert "executed" not in capsys.readouterr().out


# --- trainings --------------------------------------------------------------------------------------------------------


class Tiny(nn.Sequential):
    def __init__(self, num_classes=10):
        pool = nn.AvgPool2d(4)
        super().__init__(pool, nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, num_classes))


@pytest.fixture
def tiny_model(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", Tiny)


def config(name, **settings):
    defaults = {"dataset": "synthetic", "model": "tiny", "epochs": 1, "batch_size": 256, "device": "cpu"}
    return ExperimentConfig(name, run_dir=f"outputs/{name}", **(defaults | settings))


@pytest.mark.parametrize("dataset", ["synthetic", pytest.param("digits", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("tiny_model")
def test_a_run_continues_at_the_accuracy_of_its_source(dataset):
    common = {"dataset": dataset, "batch_size": 32, "viz_interval": 100}
    first = run_experiment(config("first", epochs=3, lr=0.005, **common))
    reached = first.history["eval/accuracy"].iloc[-1]
    assert reached > 0.6
    still = common | {"seed": 1, "lr": 1e-12, "lr_dz": 1e-12, "lr_bit": 1e-12}
    assert run_experiment(config("anew", **still)).history["eval/accuracy"].iloc[0] < 0.4
    second = run_experiment(config("second", init_from="outputs/first", **still))
    assert second.history["eval/accuracy"].iloc[0] == reached
    assert second.config.init_from == "outputs/first"


@pytest.mark.usefixtures("tiny_model")
def test_mistakes_are_found_before_the_folder_exists(tmp_path):
    torch.save(net().state_dict(), tmp_path / "a.pt")
    for source, message in (("a.pt", "does not fit Tiny: missing: 4"), ("none.pt", "does not exist")):
        with pytest.raises(CodeqError, match=message):
            run_experiment(config("run", init_from=source))
    assert not (tmp_path / "outputs").exists()


@pytest.mark.usefixtures("tiny_model")
def test_a_run_resumes_without_its_source(tmp_path, monkeypatch):
    source = run_experiment(config("source"))
    settings = config("run", epochs=2, init_from="outputs/source")
    whole = run_experiment(settings.override({"run_dir": "outputs/whole"})).history
    from codeq.trainer import Recorder

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "record_summary", die)
        patch.setattr("codeq.trainer.measurements", die)
        with pytest.raises(Killed):
            run_experiment(settings)
    shutil.rmtree(source.folder)
    assert run_experiment(settings, resume="outputs/run").history.equals(whole)
    with pytest.raises(CodeqError, match="does not exist"):
        run_experiment(settings.override({"run_dir": "outputs/other"}))


def test_published_and_own_weights_contradict_each_other():
    with pytest.raises(CodeqError, match=r"init_from='a\.pt': pretrained: true gives initial weights"):
        ExperimentConfig("x", model="resnet18", pretrained=True, init_from="a.pt")


@pytest.mark.slow
def test_names_of_torchvision_and_timm_are_the_models_own():
    import timm
    import torchvision

    from codeq.models import build_model

    theirs = torchvision.models.resnet18(num_classes=10).state_dict()
    assert str(compare(build_model("resnet18", 10, {}), theirs)) == ""
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10).state_dict()
    assert str(compare(build_model("vit", 10, {"patch_size": 8}, img_size=32), theirs)) == ""


@pytest.mark.usefixtures("tiny_model")
def test_a_checkpoint_from_before_a_key_existed_still_resumes(tmp_path):
    from codeq.runs.checkpoints import load_checkpoint, save_checkpoint

    run = run_experiment(config("run", epochs=1))
    folder = run.folder / "checkpoints"
    state, entry = load_checkpoint(folder)
    for key in ("init_from", "init_from_strict"):
        del state["config"][key]
    save_checkpoint(folder, state, epoch=entry.epoch, step=entry.step, accuracy=entry.accuracy)
    run.set_status("preempted")
    assert run_experiment(config("run", epochs=1), resume="outputs/run").status == "done"
    assert Run.open("outputs/run").config.init_from_strict is True
