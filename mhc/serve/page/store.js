// What this browser remembers: every conversation under a key of its own, so that two tabs do not overwrite each other's,
// and the settings. Where the browser keeps nothing (private windows, storage full) the page works on without.

const CHAT = "mhc.chat.";
const SETTINGS = "mhc.settings";

// A conversation: {id, title, changed, turns: [{question, answers: [answer, ...]}]}, two answers where both ways were asked.
// An answer: {plain, tokens: [[text, guessed], ...], steps, completion_tokens, seconds, finish, problem}; finish is null
// until it is whole, so that an answer cut by a reload is known as such.
function isChat(value, id) {
  const isAnswer = (answer) => Array.isArray(answer?.tokens) && answer.tokens.every((pair) => typeof pair?.[0] === "string");
  const isTurn = (turn) => typeof turn?.question === "string" && Array.isArray(turn.answers) && turn.answers.every(isAnswer);
  return value?.id === id && typeof value.title === "string" && Array.isArray(value.turns) && value.turns.every(isTurn);
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

export function loadChats() {
  const chats = new Map();
  let unreadable = 0;
  try {
    for (const key of Object.keys(localStorage).filter((key) => key.startsWith(CHAT))) {
      const chat = parsed(localStorage.getItem(key));
      if (isChat(chat, key.slice(CHAT.length))) chats.set(chat.id, chat);
      else {
        unreadable++; // set aside, so that it is told once and nothing is lost
        localStorage.setItem(key.replace(CHAT, "mhc.unreadable."), localStorage.getItem(key));
        localStorage.removeItem(key);
      }
    }
  } catch {
    // no storage, or none left to set anything aside
  }
  return { chats, unreadable };
}

export const readChat = (key, text) => {
  const chat = key?.startsWith(CHAT) ? parsed(text) : null;
  return key?.startsWith(CHAT) ? { id: key.slice(CHAT.length), chat: isChat(chat, key.slice(CHAT.length)) ? chat : null } : null;
};

// Whether it is kept.
export function saveChat(chat) {
  return put(CHAT + chat.id, chat);
}

export function dropChat(chat) {
  try {
    localStorage.removeItem(CHAT + chat.id);
  } catch {
    // it was never kept
  }
}

export function loadSettings() {
  let kept = null;
  try {
    kept = parsed(localStorage.getItem(SETTINGS));
  } catch {
    // no storage
  }
  const clean = { mode: "heads", view: "colours", theme: "", temperature: 0, top_p: 1, seed: "", max_tokens: "", system: "" };
  for (const name of Object.keys(clean)) if (typeof kept?.[name] === typeof clean[name]) clean[name] = kept[name];
  return clean;
}

export const saveSettings = (settings) => put(SETTINGS, settings);

function put(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
