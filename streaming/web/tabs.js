// The page's tabs (WAI-ARIA's tab pattern): arrow keys choose, and the address names all but the first, so that links open them.

/** Calls `onChoose(name)` with the panel's id now, and whenever another tab is chosen. */
export function setUpTabs(list, onChoose) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const panel = (tab) => document.getElementById(tab.getAttribute("aria-controls"));

  function choose(chosen) {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      panel(tab).hidden = tab !== chosen;
    }
    onChoose(panel(chosen).id);
  }

  function choosePressed(tab) {
    if (tab.getAttribute("aria-selected") === "true") return;
    const address = new URL(location.href);
    address.hash = tab === tabs[0] ? "" : panel(tab).id;
    history.replaceState(history.state, "", address);
    choose(tab);
  }

  for (const [index, tab] of tabs.entries()) {
    tab.onclick = () => choosePressed(tab);
    tab.onkeydown = ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (!step) return;
      const next = tabs.at((index + step) % tabs.length);
      next.focus();
      choosePressed(next);
    };
  }
  choose(tabs.find((tab) => location.hash === `#${panel(tab).id}`) ?? tabs[0]);
}
