"""Loaded as a plugin by processes that a test starts: its host is pretended, with files at NEURON_HOST."""

import os
from pathlib import Path

import neuron_host

from tgi_neuron import plugin
from tgi_neuron.probe import probe

neuron_host.prepare()
neuron_host.pretend()
plugin.probe = lambda: probe(Path(os.environ["NEURON_HOST"]))
