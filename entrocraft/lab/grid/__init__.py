"""Studies: methods x schedules x seeds from one YAML file, resumable cell by cell."""
