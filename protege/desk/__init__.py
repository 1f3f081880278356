"""Where instances come from: the desk suite, files of SWE-bench rows, the Hugging Face hub."""
