"""`objtune ui`: a page in the browser that finds, learns, draws and composes objects by the commands of this program."""
