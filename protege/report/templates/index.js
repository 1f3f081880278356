(() => {
  const form = document.querySelector(".filters");
  const rows = [...document.querySelectorAll("#rows tbody tr")].map((row) => [row, `${row.textContent} ${row.dataset.id}`.toLowerCase()]);
  const count = document.querySelector("#shown");
  const fields = [...form.elements].filter((field) => field.name);
  const apply = () => {
    const words = form.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of rows) {
      const d = row.dataset;
      row.hidden = !words.every((word) => text.includes(word))
        || (form.result.value !== "" && d.result !== form.result.value)
        || (form.system.value !== "" && d.system !== form.system.value)
        || (form.looped.checked && d.looped !== "1")
        || (form.asked.checked && d.asked !== "1")
        || (form.infrastructure.checked && d.result !== "infrastructure");
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} shown`;
  };
  // the filters stand in the address, so that a link keeps them and so does the way back
  const remember = () => {
    const set = new URLSearchParams();
    for (const field of fields) {
      const value = field.type === "checkbox" ? (field.checked ? "1" : "") : field.value;
      if (value) set.set(field.name, value);
    }
    history.replaceState(null, "", `#${set}`);
  };
  const recall = () => {
    const set = new URLSearchParams(location.hash.slice(1));
    for (const field of fields) {
      if (field.type === "checkbox") field.checked = set.get(field.name) === "1";
      else field.value = set.get(field.name) ?? "";
    }
    apply();
  };
  form.hidden = false;
  form.addEventListener("input", () => { apply(); remember(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", recall);
  recall();
})();
