"""The commands of `tgi`, one file each; `cli` imports a file when its command is called."""
