
#compdef objtune

_objtune_completion() {
  eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _OBJTUNE_COMPLETE=complete_zsh objtune)
}

compdef _objtune_completion objtune

