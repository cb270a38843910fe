"""From the command line to a checked configuration; nothing here imports torch.

- commands: `command_line`, `command_settings`, `help_page`, `shell_completion`, `open_run`
- composing: `composition`, `search_path`, `package_folder`, `overrides`, `override_value`
- what is allowed: `schema`, `checks`, `value_checks`, `kind_checks`, `hardware_checks`, `optimizer_checks`,
  `trusted_targets`
- from settings to calls: `binding`
- docs/config.md: `reference`
"""
