-- Listeners to events: whoever is given every event by errand itself, such as the exchange, and up to which position each was.
create table event_listeners (
    name     text primary key not null,
    position integer not null
);
