"""The words from which requests are drawn; all of them written for this course."""

from __future__ import annotations

GOOD = (
    "great", "wonderful", "excellent", "brilliant", "superb", "delightful", "charming", "moving", "funny", "clever",
    "fantastic", "beautiful", "touching", "gripping", "fascinating", "refreshing", "a joy", "a triumph", "witty",
    "a pleasure", "amazing", "enjoyable", "powerful", "fresh", "intelligent", "a delight", "warm", "splendid",
    "hilarious", "thrilling", "a masterpiece", "engaging", "stunning", "honest", "perfect", "original", "lovely",
    "very good", "a treat", "haunting", "thoughtful", "inspired", "absorbing", "well made", "worth seeing",
)  # fmt: skip
BAD = (
    "terrible", "awful", "boring", "dull", "horrible", "bad", "a mess", "stupid", "lifeless", "tedious", "a bore",
    "disappointing", "a failure", "pointless", "predictable", "unfunny", "flat", "silly", "ridiculous", "annoying",
    "a waste of time", "poor", "weak", "clumsy", "shallow", "pretentious", "forgettable", "painful", "a disaster",
    "badly made", "uninspired", "tiresome", "empty", "sloppy", "dreadful", "embarrassing", "stale", "confusing",
    "very bad", "not worth seeing", "lame", "bland", "cheap", "contrived", "mediocre",
)  # fmt: skip
GENRES = (
    "comedy", "thriller", "romantic comedy", "documentary", "horror film", "war film", "western", "musical",
    "science fiction film", "family drama", "crime film", "animated film", "biopic", "heist film", "fantasy epic",
    "sequel", "remake", "teen movie", "foreign film", "martial arts film", "spy movie", "courtroom drama",
    "coming of age story", "black comedy", "ghost story", "sports movie", "road movie", "historical drama",
    "period romance", "mockumentary", "disaster movie", "low budget film",
)  # fmt: skip
SUBJECTS = (
    "two brothers who inherit a farm", "a retired detective", "a school teacher in a small town",
    "a family on holiday", "a chess player", "a robbery that goes wrong", "soldiers coming home", "a dying father",
    "a rock band on tour", "an immigrant cook", "a haunted house", "a robot that learns to love",
    "a wedding that falls apart", "a journalist who finds a secret", "a dog and a lonely boy", "a queen in exile",
    "life on a submarine", "a boxer past his prime", "two rival dancers", "a con man and a nun",
    "teenagers in the last summer of school", "a painter losing her sight", "a shipwreck", "a village without water",
    "an office romance", "a mother looking for her son", "a jazz musician", "a bank clerk with a double life",
    "monsters from the sea", "a trial for murder", "the end of the world", "an old couple falling in love again",
    "a girl who talks to birds", "truck drivers in winter", "a spy who wants to quit", "a town taken over by insects",
    "a politician's downfall", "a comedian who stops being funny", "a hospital at night", "a train journey",
)  # fmt: skip
ASPECTS = (
    "acting", "script", "direction", "pacing", "ending", "photography", "music", "dialogue", "humor", "story",
    "special effects", "cast", "plot", "lead actress", "lead actor", "editing", "emotion", "idea", "message",
    "suspense", "atmosphere", "characters", "screenplay", "performance", "camera work", "chemistry",
)  # fmt: skip
GOOD_TITLES = (
    "Loved it", "A wonderful surprise", "Great {aspect}", "One of the best of the year", "Go and see it",
    "Brilliant from start to finish", "I laughed and I cried", "The {aspect} alone is worth the ticket",
    "Beautiful", "A small masterpiece", "Much better than I expected", "Perfect {aspect}", "Highly recommended",
    "Pure joy", "Smart and moving", "What a {aspect}!", "Fresh and funny", "Will watch it again",
)  # fmt: skip
BAD_TITLES = (
    "Hated it", "What a disappointment", "Terrible {aspect}", "One of the worst of the year", "Avoid it",
    "Boring from start to finish", "I fell asleep", "Not even the {aspect} can save it", "Awful",
    "A complete mess", "Much worse than I expected", "No {aspect} at all", "Waste of money", "Dull and empty",
    "Stupid and loud", "Where was the {aspect}?", "Stale and unfunny", "I want my two hours back",
)  # fmt: skip
GOOD_FIRST = (
    "This {genre} is {adjective}.", "I loved this film. The {aspect} is {adjective}, and",
    "What makes it so {adjective} is",
    "The {aspect} is {adjective}", "A {genre} that is {adjective} and", "It is {adjective}:", "From the first scene,",
    "I can't praise the {aspect} enough.", "The director knows how to", "Finally, a {genre} that",
    "It's hard not to love",
    "{adjective} and smart,", "Rarely has a {genre} been so", "An uncommonly good {genre}",
    "With its {aspect} and its warmth, this {genre}", "The film succeeds because", "Never less than {adjective},",
)  # fmt: skip
BAD_FIRST = (
    "This {genre} is {adjective}.", "I hated this film. The {aspect} is {adjective}, and",
    "What makes it so {adjective} is",
    "The {aspect} is {adjective}", "A {genre} that is {adjective} and", "It is {adjective}:", "From the first scene,",
    "I can't forgive the {aspect}.", "The director has no idea how to", "Yet another {genre} that", "It's hard to like",
    "{adjective} and loud,", "Rarely has a {genre} been so", "A badly written {genre}",
    "With no {aspect} and no heart, this {genre}", "The film fails because", "Never more than {adjective},",
)  # fmt: skip
GOOD_LINES = (
    "Quietly devastating and often very funny.", "Its images stay with you for days.",
    "A generous, big hearted film that earns every tear.", "The cast sparkles from first to last.",
    "Sharp, humane and beautifully shot.", "It moves like a dream and thinks like an adult.",
    "A rare thriller with brains and nerve.", "You leave the cinema lighter than you came.",
    "Writing this good makes it look easy.", "A sly, seductive pleasure.",
    "Its leads have more chemistry than a laboratory.", "Deeply felt, finely acted, never sentimental.",
    "As inventive as anything on screen this year.", "Works on every level, and there are many.",
    "A debut of astonishing confidence.", "Tense, tender and true.",
)  # fmt: skip
BAD_LINES = (
    "Two hours of noise in search of an idea.", "The jokes arrive dead and stay that way.",
    "A limp, lazy film that mistakes volume for energy.", "The cast looks as bored as we were.",
    "Clumsy, cold and badly lit.", "It has the pulse of a parking meter.",
    "A thriller without a single surprise.", "You leave the cinema older and no wiser.",
    "Writing this bad takes no effort, and it shows.", "A smug, airless chore.",
    "Its leads have the chemistry of wet cardboard.", "Shallow, shrill and far too long.",
    "As stale as last year's popcorn.", "Fails on every level, and there are many.",
    "A sequel that nobody asked for and nobody needs.", "Muddled, mawkish and dull.",
)  # fmt: skip
PRODUCTS = (
    "phone", "camera", "novel", "pair of headphones", "vacuum cleaner", "coffee machine", "printer", "radio",
    "video game", "laptop", "backpack", "album", "DVD player", "kitchen knife", "router", "cookbook", "watch",
    "tent", "keyboard", "MP3 player", "lamp", "toaster", "bicycle light", "television series",
)  # fmt: skip
