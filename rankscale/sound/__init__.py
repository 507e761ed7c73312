"""Where sound comes from: a synthesiser, folders of files, and labelled tasks."""
