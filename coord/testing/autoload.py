"""What pytest finds where `coord` is installed. It asks for the plugin by that module's own name, so that it is one
plugin, not two, for whoever gives `-p coord.testing.plugin` as well.

What must not live here: the plugin.
"""

pytest_plugins = ("coord.testing.plugin",)
