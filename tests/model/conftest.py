"""Makes the small architectures known before any test asks for one."""

from tests.model import families

families.register()
