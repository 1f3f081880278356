(() => {
  const folds = document.querySelectorAll("#turns ~ .run details, #turns ~ details");
  for (const button of document.querySelectorAll("[data-fold]")) {
    button.hidden = false;
    button.addEventListener("click", () => { for (const fold of folds) fold.open = button.dataset.fold === "open"; });
  }
})();
