"""One file, one stage: where files and maths shake hands. Importing a stage loads no torch."""
