"""Web pages and live updates over Channels. No models: it shows what the apps hold and calls their actions."""
