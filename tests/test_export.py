"""`genlab export`: what was written gives what the model gives, says so, and is refused where it does not."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from test_translate import CONFIG

import genlab
from genlab.cli.model import import_room
from genlab.configuration.trust import MODEL_ROOMS
from genlab.data.digits import Digits
from genlab.data.toy import TwoMoons
from genlab.errors import CheckpointError
from genlab.evaluation import export, functions, onnx
from genlab.evaluation.export import export_weights, load_exported
from genlab.evaluation.functions import Function, difference, functions_of
from genlab.evaluation.load import build_model
from genlab.evaluation.onnx import export_onnx
from genlab.shapes import DataSpec

PAIRS = DataSpec("pairs", (1, 8, 8), 0, 17, DataSpec("sources", (1, 8, 8), levels=17))


def config_of(name):
    if name == "pix2pix":
        config = yaml.safe_load(CONFIG)["model"]
        config["init_args"]["half_life"] = 100
        return config
    with open(f"experiments/{name}.yaml") as file:
        return yaml.safe_load(file)["model"]


def model_of(name, seed=0):
    """A model whose average is not what was averaged, and whose codes have a distribution."""
    for room in MODEL_ROOMS:
        import_room(room)
    torch.manual_seed(seed)
    spec = PAIRS if name == "pix2pix" else TwoMoons().spec if name.endswith("moons") else Digits().spec
    model = build_model(config_of(name), spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    if name == "autoencoder_digits":
        model.sampler.fit(torch.randn(64, model.latent_dim) * 3 + 1)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, the file of its weights and how far it is off; nothing changes them."""
    found = {}

    def export(name):
        if name not in found:
            model, target = model_of(name), tmp_path_factory.mktemp("exported") / f"{name}.safetensors"
            found[name] = model, target, export_weights(model, config_of(name), target)
        return found[name]

    return export


def change(path, rename=lambda name: name, header=lambda header: header, **tensors):
    """Writes a file anew with other tensors, other names or another header."""
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    found.update(tensors)
    found = {rename(name): value for name, value in found.items() if rename(name)}
    text = header(json.loads(metadata["genlab"]))
    save_file(found, path, metadata={"genlab": text if isinstance(text, str) else json.dumps(text)})


FEW = ["gan_digits", "autoencoder_digits", "pix2pix"]
MANY = [
    "vqvae_digits",
    "realnvp_moons",
    "realnvp_digits",
    "dcgan_digits",
    "vae_digits",
    "cvae_digits",
    "crealnvp_digits",
    "ddpm_digits",
    "classifier_digits",
]


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in MANY)])
def test_a_file_of_weights_gives_what_the_model_gives(name, exported):
    model, target, differences = exported(name)
    again = load_exported(target)
    assert again.average is None and not again.training
    for function, other in zip(functions_of(model), functions_of(again), strict=True):
        assert differences[function.name] < 1e-5
        torch.testing.assert_close(other.outputs(), function.outputs())
        assert len(function.outputs()) == 64
    assert len(differences) == len(functions_of(model))
    if name != "vqvae_digits" and hasattr(model, "draw_latent"):
        index = torch.arange(3)
        told = dict.fromkeys(model.given, index)
        torch.testing.assert_close(again.sample(index, 5, **told), model.sample(index, 5, **told))


def test_only_what_is_computed_with_travels_and_the_rest_is_no_number(exported):
    model, target, _ = exported("pix2pix")
    with safe_open(target, "pt") as file:
        names = {name for name in file.keys() if not name.startswith("test/")}  # noqa: SIM118
        header = json.loads(file.metadata()["genlab"])
        weight = file.get_tensor("generator.output.1.weight")
    assert names == {name for name in model.state_dict() if name.startswith("generator.")}
    assert torch.equal(weight, model.average.module.output[1].weight)
    assert not torch.equal(weight, model.generator.output[1].weight)
    assert header["version"] == genlab.__version__ and header["spec"] == PAIRS.to_dict()
    assert load_exported(target).discriminator.output.weight.isnan().all()


def test_a_file_that_is_not_what_was_written_is_refused(tmp_path, exported):
    content = exported("gan_digits")[1].read_bytes()
    target = tmp_path / "copy.safetensors"
    target.write_bytes(content)
    with safe_open(target, "pt") as file:
        z = file.get_tensor("test/decoder/z")
        weight = next(name for name in file.keys() if name.endswith("weight"))  # noqa: SIM118
        shape = file.get_tensor(weight).shape
    for reason, arguments in {
        "its decoder differs from the model": {"test/decoder/z": z + 0.1},
        "its weights are not those": {weight: torch.zeros(3, 3)},
        "is unknown": {"stranger": torch.zeros(1)},
        "differs from": {weight: torch.zeros(shape)},
        "no outputs to compare with": {"rename": lambda name: None if name == "test/decoder" else name},
        "update genlab": {"header": lambda header: {**header, "version": "99.0"}},
        "does not say what model": {"header": lambda header: {}},
        "cannot be read": {"header": lambda header: "{"},
    }.items():
        target.write_bytes(content)
        change(target, **arguments)
        with pytest.raises(CheckpointError, match=reason):
            load_exported(target)
    target.write_bytes(content[:-9])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_exported(target)


def test_what_differs_is_not_kept(tmp_path, monkeypatch, exported):
    target = tmp_path / "file.safetensors"
    target.write_bytes(b"what was there")
    monkeypatch.setattr(export, "load_exported", lambda path: model_of("gan_digits", seed=1))
    with pytest.raises(CheckpointError, match="The decoder that was written differs from the model by"):
        export_weights(exported("gan_digits")[0], config_of("gan_digits"), target)
    assert target.read_bytes() == b"what was there" and list(tmp_path.iterdir()) == [target]


def test_differences_are_shares_of_the_largest_number():
    x = torch.tensor([100.0, 0.0])
    assert difference(x + 0.01, x) == pytest.approx(1e-4, rel=1e-3)
    assert difference(torch.tensor([0.0, 0.5]), torch.tensor([0.25, 0.5])) == 0.25
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 2])) == 0.0
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == 1.0
    assert difference(x[:1], x) == difference(x * torch.nan, x) == float("inf")


def test_a_model_without_functions_says_so(exported):
    model, _, _ = exported("gan_digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functions, "can", lambda *asked: False)
        with pytest.raises(ValueError, match="has no function to export"):
            functions_of(model)


def test_an_exported_file_is_sampled_like_its_run(tmp_path, monkeypatch, exported, genlab_command):
    target = tmp_path / "gan_digits.safetensors"
    shutil.copy(exported("gan_digits")[1], target)
    code, _, error = genlab_command("sample", target, "-n", 2)
    assert code == 0 and (tmp_path / "gan_digits/samples/seed0/000001.png").is_file(), error
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, error = genlab_command("export", target, "--to", "onnx")
    assert code == 2 and "pip install 'genlab[onnx]'" in error
    code, _, error = genlab_command("export", target, "--to", "onnx", "-o", tmp_path / "x.png")
    assert code == 2 and "--output: must end in .onnx" in error
    target.write_bytes(b"nothing")
    assert genlab_command("sample", target)[0] == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FEW, *MANY])
def test_a_graph_gives_what_the_model_gives(name, tmp_path):
    pytest.importorskip("onnxruntime")
    model = model_of(name)
    for function in functions_of(model):
        target = tmp_path / "graph.onnx"
        assert export_onnx(function, model, target) < 1e-4 and target.is_file()


@pytest.mark.slow
def test_a_graph_of_a_translation_takes_other_sizes_and_is_refused_where_it_differs(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, target = model_of("pix2pix"), tmp_path / "graph.onnx"
    (function,) = functions_of(model)
    export_onnx(function, model, target)
    session = onnxruntime.InferenceSession(target)
    assert [given.name for given in session.get_inputs()] == ["source"]
    source = torch.rand(3, 1, 24, 40) * 2 - 1
    (found,) = session.run(None, {"source": source.numpy()})
    torch.testing.assert_close(torch.tensor(found), function.call(source=source), rtol=0.0, atol=1e-4)
    before = target.read_bytes()
    monkeypatch.setattr(onnx, "_run", lambda file, inputs: function.outputs(inputs) + 1e-3)
    with pytest.raises(CheckpointError, match=r"differs from the model by 0\.001"):
        export_onnx(function, model, target)
    assert target.read_bytes() == before


@pytest.mark.slow
def test_what_has_no_graph_is_named(tmp_path):
    pytest.importorskip("onnxruntime")
    model = model_of("gan_digits")
    (function,) = functions_of(model)
    broken = Function("decoder", lambda z: torch.linalg.eigvals(z @ z.mT).real, function.inputs)
    with pytest.raises(ValueError, match="The decoder of this GAN has no ONNX form"):
        export_onnx(broken, model, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
