"""What every transport promises (`coord.transports.base`), asked of each of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator

from transports_shared import PATIENCE, Lab, Member, until
