"""The spool service: takes files from a folder, works on each in a sandbox, and loses none."""
