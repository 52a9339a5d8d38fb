"""What a net costs: the time and the memory of its layers, for `dns time`.

Here belong measurements on the net's own device, and the table of them; what can be counted without
running the net is in `reports.summary`. In order: `timing`, `layer_memory`, `report`.
"""

from caffe_dns.profile.layer_memory import measure_memory
from caffe_dns.profile.timing import LayerTimer, PassTimer

__all__ = ["LayerTimer", "PassTimer", "measure_memory"]
