from tgi_neuron.probe import probe

NAME = "sys/class/neuron_device/neuron{}/neuron_core0/info/architecture/device_name"
INF2 = {"dev/neuron0": "", NAME.format(0): "Inferentia2\n"}
VERSIONS = {"torch-neuronx": "2.8.0.2.10.16998", "neuronx-distributed": "0.15.22404", "optimum-neuron": "0.4.5"}


def ask(root, **versions):
    return probe(root, lambda name: versions.get(name.replace("-", "_"), VERSIONS[name]))


def test_a_usable_device_is_named(host):
    assert ask(host(INF2)).products == ("AWS Inferentia2",)


def test_devices_come_in_the_drivers_order(host):
    root = host({**INF2, "dev/neuron2": "", "dev/neuron10": "", NAME.format(2): "Trainium1", "dev/neuron_aux": ""})
    assert ask(root).products == ("AWS Inferentia2", "AWS Trainium1", "AWS Neuron device")


def test_no_device(tmp_path):
    assert ask(tmp_path).reason == "no Inferentia or Trainium device in this machine"


def test_a_device_without_a_driver(host, pci):
    assert "aws-neuronx-dkms" in ask(host(pci("0x1d0f", device="0x7264"))).reason


def test_an_amazon_network_card_is_no_device(host, pci):
    assert "no Inferentia" in ask(host(pci("0x1d0f", device="0xec20"))).reason


def test_a_missing_library_is_named(host):
    assert "torch-neuronx is not installed; install the AWS Neuron SDK" in ask(host(INF2), torch_neuronx="").reason


def test_a_placeholder_is_no_library(host):
    assert "neuronx-distributed 0.1 is an empty placeholder" in ask(host(INF2), neuronx_distributed="0.1").reason


def test_optimum_neuron_is_missing(host):
    reason = "optimum-neuron is not installed; pip install tgi-neuron[optimum]"
    assert reason in ask(host(INF2), optimum_neuron="").reason
