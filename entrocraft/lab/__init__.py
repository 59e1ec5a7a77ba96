"""The lab: everything that trains, measures and draws; an extra, `pip install entrocraft[lab]`."""
