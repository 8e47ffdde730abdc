// Runs before the first paint, so that a stored theme never flashes. No module: modules are deferred.
try {
  const theme = localStorage.getItem("serinus.theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch { /* storage may be forbidden; the system's theme then holds */ }
