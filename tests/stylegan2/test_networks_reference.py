"""Generator and discriminator against the reference numbers, with the reference's weights."""

import pytest
import torch

from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator

pytestmark = pytest.mark.shared

GENERATORS = ("generator_skip_res32", "generator_resnet_res16_c3", "generator_orig_res16_clamp")
DISCRIMINATORS = (
    "discriminator_resnet_res32",
    "discriminator_skip_res16",
    "discriminator_skip_res16_c3",
    "discriminator_orig_res16_mbstd2",
    "discriminator_resnet_res16_c3_gray_freeze",
)
TRUNCATIONS = {
    "w": {},
    "w_psi0p7": {"truncation_psi": 0.7},
    "w_psi0p7_cut4": {"truncation_psi": 0.7, "truncation_cutoff": 4},
    "w_psi0p5_cut2": {"truncation_psi": 0.5, "truncation_cutoff": 2},
    "w_psi0": {"truncation_psi": 0.0},
}
GRADIENTS = ("g.", "gz", "gimg", "r1_")  # of parameters and inputs, and what is made of them


class Comparison:
    """Collects the tensors computed for one case and compares them with all that the case holds."""

    def __init__(self, reference, assert_close, file, case_id, gradient_slack):
        self.expected = dict(reference.outputs(file, case_id))
        self.tolerance = reference.tolerance(file)
        self.assert_close = assert_close
        self.gradient_slack = gradient_slack

    def check(self, actual):
        assert set(actual) == set(self.expected), set(actual) ^ set(self.expected)
        for name, expected in self.expected.items():
            slack = self.gradient_slack if name.startswith(GRADIENTS) else 1
            self.assert_close(actual[name], expected, slack * self.tolerance, name)


def build(cls, reference, file):
    network = cls(**reference.entry(file)["init_kwargs"])
    network.load_state_dict(reference.state(file), strict=True)
    return network


def generator_inputs(reference, file):
    inputs = reference.inputs(file, "mapping")
    return inputs["z"].clone(), inputs.get("c")


def parameter_gradients(network):
    return {
        f"g.{name}": torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in network.named_parameters()
    }


@pytest.mark.parametrize("file", GENERATORS + DISCRIMINATORS)
def test_state_dict_round_trip(file, stylegan2_reference):
    network = build(Generator if file in GENERATORS else Discriminator, stylegan2_reference, file)
    state, ours = stylegan2_reference.state(file), network.state_dict()
    assert set(ours) == set(state)
    for name, expected in state.items():
        assert torch.equal(ours[name], expected), name


@pytest.mark.parametrize("file", GENERATORS)
def test_number_of_ws(file, stylegan2_reference):
    G = build(Generator, stylegan2_reference, file)
    assert G.num_ws == stylegan2_reference.entry(file)["num_ws"]


def generator_mapping(G, reference, file):
    z, c = generator_inputs(reference, file)
    G.eval()
    return {name: G.mapping(z, c, **options) for name, options in TRUNCATIONS.items()}


def generator_mapping_w_avg_update(G, reference, file):
    z, c = generator_inputs(reference, file)
    G.train()
    G.mapping(z, c)
    after_update = G.mapping.w_avg.clone()
    G.mapping(z, c, skip_w_avg_update=True)
    return {"w_avg_after_one_train_forward": after_update, "w_avg_after_skip": G.mapping.w_avg.clone()}


def generator_synthesis(G, reference, file):
    z, c = generator_inputs(reference, file)
    ws = reference.outputs(file, "mapping")["w"]
    G.eval()
    with torch.no_grad():
        return {
            "img_const_fused": G.synthesis(ws, noise_mode="const", fused_modconv=True),
            "img_const_unfused": G.synthesis(ws, noise_mode="const", fused_modconv=False),
            "img_none": G.synthesis(ws, noise_mode="none"),
            "img_const_psi0p7": G(z, c, truncation_psi=0.7, noise_mode="const"),
        }


def generator_gradients(G, reference, file):
    z, c = generator_inputs(reference, file)
    z.requires_grad_()
    G.train()
    img = G(z, c, noise_mode="const")
    (img * reference.inputs(file, "gradients")["gimg"]).sum().backward()
    return {"gz": z.grad, **parameter_gradients(G)}


@pytest.mark.reference_cases(*GENERATORS)
def test_generator(file, case, stylegan2_reference, assert_close_to_reference, gradient_slack):
    compute = {
        "mapping": generator_mapping,
        "mapping_w_avg_update": generator_mapping_w_avg_update,
        "synthesis": generator_synthesis,
        "gradients": generator_gradients,
    }[case["id"]]
    G = build(Generator, stylegan2_reference, file)
    comparison = Comparison(stylegan2_reference, assert_close_to_reference, file, case["id"], gradient_slack)
    comparison.check(compute(G, stylegan2_reference, file))


def discriminator_forward_backward(D, inputs, args):
    img = inputs["img"].clone().requires_grad_()
    logits = D(img, inputs.get("c"))
    (logits * inputs["cot"]).sum().backward()
    return {"logits": logits, "gimg": img.grad, **parameter_gradients(D)}


def discriminator_r1(D, inputs, args):
    img = inputs["img"].clone().requires_grad_()
    logits = D(img, inputs.get("c"))
    (gradient,) = torch.autograd.grad(logits.sum(), img, create_graph=True)
    penalty = gradient.square().sum(dim=(1, 2, 3))
    loss = penalty.mean() * (args["gamma"] / 2)
    loss.backward()
    return {
        "r1_grad_img": gradient,
        "r1_penalty": penalty,
        "r1_loss": loss,
        **parameter_gradients(D),
    }


@pytest.mark.reference_cases(*DISCRIMINATORS)
def test_discriminator(file, case, stylegan2_reference, assert_close_to_reference, gradient_slack):
    compute = {"forward_backward": discriminator_forward_backward, "r1": discriminator_r1}[case["id"]]
    D = build(Discriminator, stylegan2_reference, file).train()
    inputs = stylegan2_reference.inputs(file, "forward_backward")
    comparison = Comparison(stylegan2_reference, assert_close_to_reference, file, case["id"], gradient_slack)
    comparison.check(compute(D, inputs, case["args"]))
