"""HTTP server of tgi: TGI's and OpenAI's APIs in front of one engine process."""

from importlib import metadata

try:
    __version__ = metadata.version("tgi-server")
except metadata.PackageNotFoundError:  # run from the sources
    __version__ = "0.0.0"

#: what `/info` reports: clients read features of TGI from it, so it compares as the TGI whose contract is kept
CONTRACT_VERSION = f"3.3.6+tgi.{__version__}"
