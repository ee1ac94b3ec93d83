"""tqlab: understand, measure and trust TurboQuant.

The public interface is what is named here; notebooks and the command line use nothing else.
"""

from . import data, device, formats
from .models import load_model

__version__ = "0.1.0"
__all__ = ["data", "device", "formats", "load_model"]
